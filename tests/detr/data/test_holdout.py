"""A hold-out: the same pictures each time, no picture in both parts, and a ground truth of its own."""

import json

import pytest
import torch

from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.data.holdout import hold_out
from deform_attn.detr.data.splits import required_split
from deform_attn.detr.errors import DataError


class Named:
    """Pictures that have nothing but a name."""

    categories = ()

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def ground_truth(self):
        return {"images": [{"id": 7 * i, "file_name": f"{i}.jpg"} for i in range(self.count)], "annotations": []}


@pytest.mark.parametrize(
    ("count", "share", "held"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.1, 1), (100, 0.25, 25), (3, 0.5, 2)]
)
def test_each_picture_is_in_one_part_and_the_share_is_held_out(count, share, held):
    rest, part = hold_out(Named(count), share)
    assert (len(rest), len(part)) == (count - held, held)
    assert sorted(rest.indices + part.indices) == list(range(count))
    assert hold_out(Named(count), share)[1].indices == part.indices


def test_a_larger_share_adds_pictures_and_the_choice_is_no_run():
    small, large = (set(hold_out(Named(100), share)[1].indices) for share in (0.1, 0.3))
    assert small < large
    assert large != set(range(30))
    assert large != set(range(70, 100))


@pytest.fixture
def folder(tmp_path):
    """Return a folder with four pictures, each with as many boxes as its id tells, and one json file."""
    from PIL import Image

    images, annotations = [], []
    for number in (1, 2, 3, 4):
        Image.new("RGB", (20, 16), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 20, "height": 16})
        for _ in range(number):
            box = {"image_id": number, "category_id": 1, "bbox": [2, 3, 5, 6], "area": 30, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **box})
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "one"}]}
    (tmp_path / "labels.json").write_text(json.dumps(truth))
    return tmp_path


def test_a_part_has_the_samples_and_the_truth_of_its_pictures(folder):
    whole = CocoFolder(*required_split(folder, "train"))
    rest, part = hold_out(whole, 0.5)
    for half in (rest, part):
        truth = half.ground_truth()
        assert half.categories == whole.categories
        assert [image["id"] for image in truth["images"]] == [half[i].image_id for i in range(len(half))]
        assert {a["image_id"] for a in truth["annotations"]} <= {image["id"] for image in truth["images"]}
        assert sum(len(half[i].labels) for i in range(len(half))) == len(truth["annotations"])
        with pytest.raises(IndexError):
            half[len(half)]
    torch.testing.assert_close(part[0].image, whole[part.indices[0]].image)


def test_one_picture_cannot_be_held_out():
    with pytest.raises(DataError, match="expected at least 2 images, got 1"):
        hold_out(Named(1), 0.5)
