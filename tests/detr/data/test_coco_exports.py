"""What labelling tools write otherwise than COCO's own files, and what is still too little to learn from."""

import json

import pytest
from PIL import Image

from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        Image.new("RGB", (48, 32)).save(tmp_path / f"{name}.png")
    return tmp_path


def content() -> dict:
    """Return the annotations of two pictures, two boxes in the first and one in the second."""
    box = {"bbox": [4, 4, 20, 12], "iscrowd": 0}
    return {
        "images": [{"id": i, "file_name": f"{'ab'[i - 1]}.png", "width": 48, "height": 32} for i in (1, 2)],
        "categories": [{"id": 0, "name": "cat"}, {"id": 7, "name": "bird"}],
        "annotations": [
            {"id": 21, "image_id": 1, "category_id": 0, **box},
            {"id": 22, "image_id": 1, "category_id": 7, **box},
            {"id": 23, "image_id": 2, "category_id": 7, **box},
        ],
    }


def load(folder, data, **options) -> CocoFolder:
    (folder / "boxes.json").write_text(json.dumps(data))
    return CocoFolder(folder / "boxes.json", folder, **options)


def error(folder, data, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, data, **options)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'boxes.json'}: ")
    assert "\n" not in message
    return message


def spoil(data, table, kind, *fields):
    """Return `data` with these fields of all records of a table turned into another kind of value."""
    for record in data[table]:
        record |= {field: kind(record[field]) for field in fields}
    return data


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize(
    ("table", "kind", "fields"),
    [
        ("images", float, ("id", "width", "height")),
        ("categories", float, ("id",)),
        ("annotations", float, ("id", "image_id", "category_id", "iscrowd")),
        ("images", str, ("id",)),
        ("categories", str, ("id",)),
        ("annotations", str, ("id", "image_id", "category_id")),
    ],
)
def test_whole_numbers_written_as_floats_and_ids_written_as_texts_are_the_numbers(
    folder, table, kind, fields, skip_bad
):
    expected = load(folder, content()).ground_truth()
    data = load(folder, spoil(content(), table, kind, *fields), skip_bad=skip_bad)
    assert data.skipped == ()
    truth = data.ground_truth()
    assert truth == expected
    for record in truth["images"] + truth["annotations"] + truth["categories"]:
        assert all(type(value) is int for name, value in record.items() if name.endswith("id") or name == "width")


@pytest.mark.parametrize("value", ["007", "+7", " 7", "7.0", "1e3", "seven", "", "\N{ARABIC-INDIC DIGIT SEVEN}", 7.5])
def test_an_id_that_is_another_text_than_its_number_is_refused(folder, value):
    data = content()
    data["annotations"][1]["category_id"] = value
    assert f"annotations[1] (id 22): expected 'category_id' to be a whole number, got {value!r}" in error(folder, data)


@pytest.mark.parametrize("number", [1e400, -1e400, float("nan")])
def test_a_size_that_is_not_finite_is_refused(folder, number):
    data = content()
    data["images"][0]["width"] = number
    assert "expected 'width' to be a whole number" in error(folder, data)


def test_two_ids_that_are_one_number_occur_twice(folder):
    data = content()
    data["annotations"][1]["id"], data["annotations"][2]["id"] = 21.0, "21"
    assert "the id 21 occurs twice in 'annotations'" in error(folder, data)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda data: data["images"][0].update(width="48"), "expected 'width' to be a whole number, got '48'"),
        (lambda data: data["annotations"][0].update(bbox="4 4 20 12"), "expected 'bbox' to be a list"),
        (lambda data: data["annotations"][0].update(bbox=["4", "4", "20", "12"]), "4 finite numbers"),
    ],
)
def test_sizes_and_boxes_written_as_texts_are_refused_and_the_message_says_how_to_write_them(folder, change, field):
    data = content()
    change(data)
    message = error(folder, data)
    assert field in message
    assert message.endswith("; write numbers without quotation marks") or "4 4" in message


def test_annotations_without_ids_are_numbered(folder):
    data = content()
    for record in data["annotations"]:
        del record["id"]
    loaded = load(folder, data)
    assert [record["id"] for record in loaded.ground_truth()["annotations"]] == [1, 2, 3]
    assert [len(sample.labels) for sample in loaded] == [2, 1]


def test_annotations_of_which_some_have_no_id_get_free_ones_and_keep_their_order(folder):
    data = content()
    data["annotations"][0]["id"] = None
    del data["annotations"][1]["id"]
    truth = load(folder, data).ground_truth()
    assert [(record["id"], record["category_id"]) for record in truth["annotations"]] == [(24, 0), (25, 7), (23, 7)]


def test_what_is_wrong_with_an_annotation_without_id_is_said_with_its_position(folder):
    data = content()
    del data["annotations"][1]["id"]
    data["annotations"][1]["bbox"] = [0, 0, 0, 5]
    assert "boxes.json: annotations[1] (no id): bbox [0, 0, 0, 5] has no area" in error(folder, data)
    assert load(folder, data, skip_bad=True).skipped[0].startswith(f"{folder / 'boxes.json'}: annotations[1] (no id): ")


@pytest.mark.parametrize("table", ["images", "categories"])
def test_an_image_or_a_category_needs_its_id(folder, table):
    data = content()
    del data[table][1]["id"]
    assert f"{table}[1] (no id): expected 'id' to be a whole number, got None" in error(folder, data)


@pytest.mark.parametrize(("value", "crowd"), [(None, 0), (0, 0), (0.0, 0), (False, 0), (1, 1), (1.0, 1), (True, 1)])
def test_a_crowd_is_what_says_so_by_a_number(folder, value, crowd):
    data = content()
    data["annotations"][0]["iscrowd"] = value
    assert load(folder, data).ground_truth()["annotations"][0]["iscrowd"] == crowd


@pytest.mark.parametrize("value", ["0", "false", 2, -1, [0], float("nan")])
def test_a_crowd_that_is_neither_0_nor_1_is_refused(folder, value):
    data = content()
    data["annotations"][0]["iscrowd"] = value
    assert f"annotation 21: expected iscrowd to be 0 or 1, got {value!r}" in error(folder, data)


def test_annotations_that_are_all_crowds_are_refused_with_the_way_out(folder):
    data = content()
    for record in data["annotations"]:
        record["iscrowd"] = 1
    message = error(folder, data)
    assert "there is no object to find, all 3 annotations have iscrowd = 1, as some tools write by default" in message
    assert message.endswith("write iscrowd = 0 where a box holds a single object")


def test_crowds_that_alone_are_left_after_skipping_are_refused(folder):
    data = content()
    data["annotations"][0]["iscrowd"] = data["annotations"][1]["iscrowd"] = 1
    data["annotations"][2]["bbox"] = [0, 0, 0, 0]
    assert "all 2 annotations left have iscrowd = 1" in error(folder, data, skip_bad=True)


@pytest.mark.parametrize("kind", [int, float, str])
def test_the_annotations_of_a_skipped_image_go_with_it_however_its_id_is_written(folder, kind):
    data = spoil(content(), "images", kind, "id")
    data["images"][0]["width"] = 0
    (line,) = load(folder, data, skip_bad=True).skipped
    assert line.endswith("write the image's own width and height; with it 2 annotations")


def test_two_image_records_of_one_picture_are_said(folder):
    assert load(folder, content()).remarks == ()
    data = content()
    data["images"].append({"id": 9, "file_name": "a.png", "width": 48, "height": 32})
    (remark,) = load(folder, data).remarks
    assert remark.startswith(f"{folder / 'boxes.json'}: images 1 and 9 are the same file; merge their records")
    data["images"].append({"id": 10, "file_name": "./a.png", "width": 48, "height": 32})
    assert "images 1 and 9 are the same file (pairs of this kind: 2); merge" in load(folder, data).remarks[0]


def test_boxes_that_are_clipped_are_counted(folder):
    data = content()
    data["annotations"][0]["bbox"] = [-0.5, 0, 10, 10]  # rounding: half a pixel
    assert load(folder, data).remarks == ()
    data["annotations"][0]["bbox"] = [30, 10, 40, 20]  # two corners, in an image of 48 x 32
    (remark,) = load(folder, data).remarks
    count, name = len(data["annotations"]), data["annotations"][0]["id"]
    assert f": 1 of {count} boxes extend beyond their image and are clipped, " in remark
    assert f"the first is that of annotation {name}; bbox is x, y, width, height" in remark
