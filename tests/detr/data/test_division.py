"""Which pictures are evaluated on, in training and after it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from deform_attn.detr.data.base import DetectionData
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.data.division import divide, held_out
from deform_attn.detr.data.splits import Split
from deform_attn.detr.errors import DataError


def write(folder: Path, split: str, count: int) -> None:
    (folder / split).mkdir(parents=True)
    images, boxes = [], []
    for i in range(1, count + 1):
        Image.new("RGB", (8, 6)).save(folder / split / f"{split}{i}.png")
        images.append({"id": i, "file_name": f"{split}{i}.png", "width": 8, "height": 6})
        boxes.append({"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 3, 2], "area": 6, "iscrowd": 0})
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "block"}]}
    (folder / f"{split}.json").write_text(json.dumps(truth))


def names(data: DetectionData | None) -> list[str]:
    return [] if data is None else [image["file_name"] for image in data.ground_truth()["images"]]


def test_what_is_held_out_in_training_is_what_is_evaluated_on_after_it(tmp_path: Path) -> None:
    write(tmp_path, "train", 5)
    lines: list[str] = []
    train, validation = divide(tmp_path, 0.4, lambda split: CocoFolder(*split), lines.append)
    assert names(held_out(tmp_path, 0.4, lambda split: CocoFolder(*split), lines.append)) == names(validation)
    assert sorted(names(train) + names(validation)) == [f"train{i}.png" for i in range(1, 6)]
    assert len(names(validation)) == 2
    assert lines == [f"{tmp_path}: 2 of 5 images are held out to validate on"]


def test_a_validation_split_is_used_whole_and_said_where_a_share_was_to_be_held_out(tmp_path: Path) -> None:
    write(tmp_path, "train", 3)
    write(tmp_path, "val", 2)
    lines: list[str] = []
    train, validation = divide(tmp_path, 0.4, lambda split: CocoFolder(*split), lines.append)
    assert names(train) == ["train1.png", "train2.png", "train3.png"]
    assert names(validation) == ["val1.png", "val2.png"]
    read: list[Split] = []

    def note(split: Split) -> CocoFolder:
        read.append(split)
        return CocoFolder(*split)

    assert names(held_out(tmp_path, 0.4, note, lines.append)) == names(validation)
    assert [split.images.name for split in read] == ["val"]
    assert lines == 2 * [f"{tmp_path}: there is a val split, so no image of the train split is held out"]


def test_without_a_validation_split_and_a_share_there_is_none(tmp_path: Path) -> None:
    write(tmp_path, "train", 3)
    lines: list[str] = []
    assert divide(tmp_path, 0.0, lambda split: CocoFolder(*split), lines.append).validation is None
    assert lines[0].startswith(f"{tmp_path}: there is no val split, so there are no metrics; looked for val.json, ")
    with pytest.raises(DataError, match=r"there is no val split; .*use --hold-out"):
        held_out(tmp_path, 0.0, lambda split: CocoFolder(*split), lines.append)
