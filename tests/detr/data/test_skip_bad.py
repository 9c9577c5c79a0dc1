"""Bad records: each is one clear message that names file and id, and with `skip_bad` the rest goes on without it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deform_attn.detr.data.base import Category
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.errors import DataError

WIDTH, HEIGHT = 48, 32


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(
            tmp_path / name
        )
    return tmp_path


def content() -> dict:
    """Return the annotations of three good pictures: one box in the first, two in the second, none in the third."""
    return {
        "images": [
            {"id": 11, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 12, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 13, "file_name": "c.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "bird"}],
        "annotations": [
            {"id": 21, "image_id": 11, "category_id": 1, "bbox": [4, 4, 20, 12]},
            {"id": 22, "image_id": 12, "category_id": 2, "bbox": [8, 6, 20, 12]},
            {"id": 23, "image_id": 12, "category_id": 1, "bbox": [2, 3, 9, 10]},
        ],
    }


def change(table, position, **values):
    """Return a function that writes wrong `values` into a record."""
    return lambda folder, data: data[table][position].update(values)


def repeat(table, **values):
    """Return a function that adds the first record of `table` once more, with other `values`."""
    return lambda folder, data: data[table].append(data[table][0] | values)


def cut(name, length):
    """Return a function that leaves of a file its first bytes."""
    return lambda folder, data: (folder / name).write_bytes((folder / name).read_bytes()[:length])


BOX = {
    "a box without width": ([4, 4, 0, 12], "bbox [4, 4, 0, 12] has no area"),
    "a box of negative height": ([4, 4, 20, -12], "bbox [4, 4, 20, -12] has no area"),
    "a box with NaN": ([4, float("nan"), 20, 12], "expected bbox to be 4 finite numbers"),
    "a box of three numbers": ([4, 4, 20], "expected bbox to be 4 finite numbers"),
    "a box outside its image": ([48, 4, 20, 12], "is outside image 12 (48 x 32 pixels)"),
}
# What is done to the good data; the file and what else the message has; the images and annotations left.
BAD = {
    name: (change("annotations", 1, bbox=box), "boxes.json: annotation 22: ", message, [11, 12, 13], [21, 23])
    for name, (box, message) in BOX.items()
} | {
    "a malformed annotation": (
        change("annotations", 1, bbox="4 4 20 12"),
        "boxes.json: annotations[1] (id 22): ", "expected 'bbox' to be a list", [11, 12, 13], [21, 23],
    ),
    "an annotation that is none": (
        lambda folder, data: data["annotations"].append(7),
        "boxes.json: annotations[3]: expected a record with 'id', ", "got 7", [11, 12, 13], [21, 22, 23],
    ),
    "an unknown category": (
        change("annotations", 1, category_id=99),
        "boxes.json: annotation 22: ", "category_id 99 is not among the categories", [11, 12, 13], [21, 23],
    ),
    "an unknown image": (
        change("annotations", 1, image_id=99),
        "boxes.json: annotation 22: ", "image_id 99 is not among the images", [11, 12, 13], [21, 23],
    ),
    "an annotation's id twice": (
        repeat("annotations", bbox=[0, 0, 1, 1]),
        "boxes.json: ", "the id 21 occurs twice in 'annotations'", [11, 12, 13], [21, 22, 23],
    ),
    "an image's id twice": (
        repeat("images", file_name="b.jpg"),
        "boxes.json: ", "the id 11 occurs twice in 'images'", [11, 12, 13], [21, 22, 23],
    ),
    "a category's id twice": (
        repeat("categories", name="dog"),
        "boxes.json: ", "the id 1 occurs twice in 'categories'", [11, 12, 13], [21, 22, 23],
    ),
    "a malformed image": (
        change("images", 1, width="48"),
        "boxes.json: images[1] (id 12): ", "expected 'width' to be a whole number, got '48'", [11, 13], [21],
    ),
    "an image without extent": (
        change("images", 1, width=0), "boxes.json: image 12 is 0 x 32", "own width and height", [11, 13], [21],
    ),
    "a missing file": (
        lambda folder, data: (folder / "b.jpg").unlink(),
        "b.jpg (image 12 of ", "no such file; add it or take its record out", [11, 13], [21],
    ),
    "a folder in the place of a file": (
        change("images", 1, file_name="."), "(image 12 of ", "no such file", [11, 13], [21],
    ),
    "an empty file": (cut("b.jpg", 0), "b.jpg (image 12 of ", "not a readable image", [11, 13], [21]),
    "a picture that is text": (
        lambda folder, data: (folder / "b.jpg").write_text("<html>not found</html>"),
        "b.jpg (image 12 of ", "not a readable image", [11, 13], [21],
    ),
    "a picture cut off in its pixels": (
        cut("b.jpg", 900), "b.jpg (image 12 of ", "not a readable image", [11, 13], [21],
    ),
    "a PNG cut off in its pixels": (
        cut("c.png", 900), "c.png (image 13 of ", "not a readable image", [11, 12], [21, 22, 23],
    ),
    "another size than the annotations say": (
        change("images", 1, width=50),
        "b.jpg (image 12 of ", "is 48 x 32 pixels large, the annotations say 50 x 32", [11, 13], [21],
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", BAD, ids=str)


def load(folder: Path, data: dict, **options) -> CocoFolder:
    (folder / "boxes.json").write_text(json.dumps(data))
    return CocoFolder(folder / "boxes.json", folder, **options)


def damaged(folder: Path, name: str) -> dict:
    data = content()
    BAD[name][0](folder, data)
    return data


def check_line(folder: Path, line: str, name: str) -> None:
    _, place, complaint, *_ = BAD[name]
    assert line.startswith(str(folder))
    assert place in line
    assert complaint in line
    assert "\n" not in line


@EVERY
def test_a_bad_record_raises_one_line_that_names_file_and_id(folder, name):
    data = damaged(folder, name)
    with pytest.raises(DataError) as caught:
        list(load(folder, data))
    check_line(folder, str(caught.value), name)


@EVERY
def test_the_rest_goes_on_without_a_bad_record_that_is_to_be_skipped(folder, name):
    data = load(folder, damaged(folder, name), skip_bad=True)
    assert len(data.skipped) == 1
    check_line(folder, data.skipped[0], name)
    *_, images, annotations = BAD[name]
    truth = data.ground_truth()
    assert [image["id"] for image in truth["images"]] == images
    assert [annotation["id"] for annotation in truth["annotations"]] == annotations
    assert [sample.image_id for sample in data] == images
    assert sum(len(sample.labels) for sample in data) == len(annotations)
    assert data.categories == (Category(1, "cat"), Category(2, "bird"))


def test_of_two_records_with_one_id_the_first_stays(folder):
    data = content()
    repeat("annotations", bbox=[0, 0, 1, 1])(folder, data)
    repeat("images", file_name="c.png")(folder, data)
    truth = load(folder, data, skip_bad=True).ground_truth()
    assert truth["images"][0]["file_name"] == "a.jpg"
    assert truth["annotations"][0]["bbox"] == [4, 4, 20, 12]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_of_good_data_nothing_is_skipped(folder, skip_bad):
    data = load(folder, content(), skip_bad=skip_bad)
    assert data.skipped == ()
    assert len(data) == 3


@pytest.mark.parametrize("name", ["a malformed image", "a missing file", "a picture cut off in its pixels"])
def test_the_annotations_of_a_skipped_picture_go_with_it_and_are_counted(folder, name):
    data = load(folder, damaged(folder, name), skip_bad=True)
    assert data.skipped[0].endswith("; with it 2 annotations")


def test_a_good_image_keeps_its_annotations_though_a_malformed_one_had_its_id(folder):
    data = content()
    data["images"].insert(0, {"id": 12})
    loaded = load(folder, data, skip_bad=True)
    assert len(loaded.skipped) == 1
    assert [annotation["id"] for annotation in loaded.ground_truth()["annotations"]] == [21, 22, 23]


def test_all_that_is_bad_is_listed_line_by_line(folder):
    (folder / "a.jpg").unlink()
    (folder / "c.png").unlink()
    data = content()
    data["annotations"][1]["category_id"] = 99
    lines = load(folder, data, skip_bad=True).skipped
    assert [line.split(": ")[0].removeprefix(f"{folder}/") for line in lines] == [
        f"a.jpg (image 11 of {folder / 'boxes.json'})",
        f"c.png (image 13 of {folder / 'boxes.json'})",
        "boxes.json",
    ]
    assert lines[0].endswith("no such file; add it or take its record out; with it 1 annotation")
    assert lines[1].endswith("no such file; add it or take its record out")


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("table", ["images", "annotations", "categories"])
def test_an_empty_table_is_an_error_in_both_modes(folder, table, skip_bad):
    with pytest.raises(DataError, match=rf"boxes\.json: no {table}; label some images"):
        load(folder, content() | {table: []}, skip_bad=skip_bad)


def spoil(data, table, **values):
    for record in data[table]:
        record.update(values)


@pytest.mark.parametrize(
    ("table", "values", "count", "first"),
    [
        ("images", {"width": "wide"}, 3, r"images\[0\] \(id 11\)"),
        ("images", {"file_name": "gone.png"}, 3, r"gone\.png \(image 11 of"),
        ("categories", {"name": None}, 2, r"categories\[0\] \(id 1\)"),
        ("annotations", {"bbox": None}, 3, r"annotations\[0\] \(id 21\)"),
        ("annotations", {"bbox": [0, 0, 0, 0]}, 3, "annotation 21"),
    ],
)
def test_it_is_an_error_if_nothing_is_left(folder, table, values, count, first):
    data = content()
    spoil(data, table, **values)
    message = rf"boxes\.json: none of the {table} can be used; the first of {count} problems: .*{first}"
    with pytest.raises(DataError, match=message) as caught:
        load(folder, data, skip_bad=True)
    assert "\n" not in str(caught.value)


def test_it_is_an_error_if_only_pictures_without_annotations_are_left(folder):
    (folder / "a.jpg").unlink()
    (folder / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"none of the annotations can be used; the first of 2 problems: .*a\.jpg"):
        load(folder, content(), skip_bad=True)


def test_a_picture_that_goes_bad_after_the_check_is_an_error_and_never_replaced(folder):
    data = load(folder, content(), skip_bad=True)
    cut("b.jpg", 900)(folder, None)
    with pytest.raises(DataError, match=r"b\.jpg \(image 12 of .*not a readable image"):
        data[1]
    assert len(data) == 3


def test_what_is_wrong_with_the_whole_file_is_an_error_in_both_modes(folder):
    with pytest.raises(DataError, match="not a COCO dataset, but COCO results"):
        load(folder, [], skip_bad=True)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        CocoFolder(folder / "boxes.json", folder / "nowhere", skip_bad=True)
