"""COCO folders: what becomes of pictures and boxes, and what is said when something is wrong."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from deform_attn.detr.data.base import Category
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.errors import DataError

WIDTH, HEIGHT = 50, 30


def pixels(height=HEIGHT, width=WIDTH, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiny() -> dict:
    """Return the annotations of three pictures, the last of which shows nothing."""
    return {
        "images": [
            {"id": 12, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 5, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
            {"id": 7, "file_name": "c.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "bird"}],
        "annotations": [
            {"id": 1, "image_id": 12, "category_id": 9, "bbox": [10, 6, 20, 12], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 12, "category_id": 3, "bbox": [40, 20, 15.5, 30]},
            {"id": 3, "image_id": 5, "category_id": 3, "bbox": [-5, -5, 10, 10], "iscrowd": 0},
            {"id": 4, "image_id": 5, "category_id": 9, "bbox": [0, 0, 50, 30], "iscrowd": 1},
        ],
    }


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate("abc"):
        Image.fromarray(pixels(seed=i)).save(tmp_path / f"{name}.png")
    return tmp_path


def write(folder: Path, content) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def load(folder: Path, content, **options) -> CocoFolder:
    return CocoFolder(write(folder, content), folder, **options)


def error(folder: Path, content) -> str:
    """Return what is said about `content`, which is one line that begins with the file's path."""
    with pytest.raises(DataError) as caught:
        load(folder, content)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'boxes.json'}: ")
    assert "\n" not in message
    return message


def picture_error(folder: Path, when: str) -> str:
    """Return what is said about the first picture, which comes up `when` the data are "made" or it is "read"."""
    data = load(folder, tiny()) if when == "read" else None
    with pytest.raises(DataError) as caught:
        data[0] if data else load(folder, tiny())
    message = str(caught.value)
    assert message.startswith(f"{folder / 'a.png'} (image 12 of {folder / 'boxes.json'}): ")
    assert "\n" not in message
    return message


def test_labels_count_the_categories_in_order_of_their_ids(folder):
    data = load(folder, tiny())
    assert data.categories == (Category(3, "bird"), Category(9, "cat"))
    assert data[0].labels.tolist() == [1, 0]


def test_a_sample_holds_the_picture_and_fractions_of_its_size(folder):
    sample = load(folder, tiny())[0]
    expected = torch.from_numpy(pixels(seed=0)).permute(2, 0, 1).float() / 255
    assert torch.equal(sample.image, expected)
    torch.testing.assert_close(sample.boxes[0], torch.tensor([20 / 50, 12 / 30, 20 / 50, 12 / 30]))
    assert (sample.boxes.dtype, sample.labels.dtype) == (torch.float32, torch.int64)
    assert (sample.image_id, sample.original_size) == (12, (HEIGHT, WIDTH))


def test_a_box_that_sticks_out_is_clipped(folder):
    data = load(folder, tiny())
    torch.testing.assert_close(data[0].boxes[1], torch.tensor([45 / 50, 25 / 30, 10 / 50, 10 / 30]))
    torch.testing.assert_close(data[1].boxes[0], torch.tensor([2.5 / 50, 2.5 / 30, 5 / 50, 5 / 30]))


def test_a_crowd_is_no_target_but_stays_in_the_ground_truth(folder):
    data = load(folder, tiny())
    assert data[1].labels.tolist() == [0]
    assert [annotation["iscrowd"] for annotation in data.ground_truth()["annotations"]] == [0, 0, 0, 1]


def test_a_picture_without_annotations_is_a_sample_without_boxes(folder):
    sample = load(folder, tiny())[2]
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.shape == (0,)


def test_the_ground_truth_is_in_pixels_and_keeps_areas_of_masks(folder):
    truth = load(folder, tiny()).ground_truth()
    assert [image["id"] for image in truth["images"]] == [12, 5, 7]
    assert truth["categories"] == [{"id": 3, "name": "bird"}, {"id": 9, "name": "cat"}]
    assert [annotation["bbox"] for annotation in truth["annotations"][:2]] == [[10, 6, 20, 12], [40, 20, 10, 10]]
    assert [annotation["area"] for annotation in truth["annotations"][:2]] == [200, 100]


def test_max_size_bounds_the_longer_side_and_leaves_the_fractions(folder):
    native, small = load(folder, tiny())[0], load(folder, tiny(), max_size=20)[0]
    assert small.image.shape == (3, 12, 20)
    assert torch.equal(small.boxes, native.boxes)
    assert small.original_size == (HEIGHT, WIDTH)
    assert torch.equal(load(folder, tiny(), max_size=WIDTH)[0].image, native.image)


def test_max_size_below_one_is_refused(folder):
    with pytest.raises(ValueError, match="max_size: expected"):
        load(folder, tiny(), max_size=0)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_pictures_of_any_mode_become_rgb(folder, mode):
    picture = Image.fromarray(pixels()).convert(mode)
    picture.save(folder / "a.png", format="TIFF" if mode == "CMYK" else "PNG")
    expected = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    assert torch.equal(load(folder, tiny())[0].image, torch.from_numpy(expected).permute(2, 0, 1))


def test_a_palette_with_transparency_is_read(folder):
    Image.fromarray(pixels()).convert("P").save(folder / "a.png", transparency=bytes(range(256)))
    assert load(folder, tiny())[0].image.shape == (3, HEIGHT, WIDTH)


def test_sixteen_bits_are_scaled_rather_than_clipped(folder):
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(grey).save(folder / "a.png")
    actual = load(folder, tiny())[0].image
    torch.testing.assert_close(actual[1], torch.from_numpy(grey.astype(np.float32) / 65535), rtol=0, atol=1 / 255)


def test_a_picture_is_turned_as_its_exif_orientation_says(folder):
    upright = Image.fromarray(pixels())
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn it clockwise to view
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "a.png", exif=exif)
    expected = torch.from_numpy(pixels()).permute(2, 0, 1).float() / 255
    assert torch.equal(load(folder, tiny())[0].image, expected)


def test_iteration_ends_with_the_last_picture(folder):
    assert [sample.image_id for sample in load(folder, tiny())] == [12, 5, 7]


def test_a_missing_json_is_named(folder):
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read"):
        CocoFolder(folder / "nowhere.json", folder)


def test_a_missing_folder_of_pictures_is_named(folder):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        CocoFolder(write(folder, tiny()), folder / "nowhere")


@pytest.mark.parametrize("content", ["", "{'single': 'quotes'}", '{"images": [', "[" * 100_000])
def test_what_is_no_json_is_refused(folder, content):
    assert "not valid JSON" in error(folder, content)


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "boxes.json").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    with pytest.raises(DataError, match="not valid JSON"):
        CocoFolder(folder / "boxes.json", folder)


@pytest.mark.parametrize(
    "content", ["3", "null", '"text"', "{}", '{"images": {}, "annotations": [], "categories": []}']
)
def test_json_that_is_not_coco_is_refused(folder, content):
    assert "not in COCO format, 'images' is not a list" in error(folder, content)


def test_coco_results_are_told_from_annotations(folder):
    assert "not a COCO dataset, but COCO results" in error(
        folder, [{"image_id": 12, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1}]
    )


@pytest.mark.parametrize("table", ["images", "annotations", "categories"])
def test_an_empty_table_is_refused(folder, table):
    assert f"no {table}; label some images and export again" in error(folder, tiny() | {table: []})


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("images", "id", "000012"),
        ("images", "file_name", None),
        ("images", "width", 50.5),
        ("images", "height", True),
        ("categories", "name", 3),
        ("annotations", "image_id", None),
        ("annotations", "category_id", "cat"),
        ("annotations", "bbox", {"x": 1}),
    ],
)
def test_a_field_of_the_wrong_type_is_named(folder, table, field, value):
    content = tiny()
    content[table][1][field] = value
    message = error(folder, content)
    assert f"{table}[1] (id {content[table][1]['id']!r}): expected {field!r}" in message
    assert f"got {value!r}" in message


def test_a_missing_field_and_a_record_that_is_none_are_named(folder):
    content = tiny()
    del content["annotations"][2]["bbox"]
    assert "annotations[2] (id 3): expected 'bbox' to be a list, got None" in error(folder, content)
    expected = "images[1]: expected a record with 'id', 'file_name', 'width', 'height', got 4; drop it"
    assert expected in error(folder, tiny() | {"images": [tiny()["images"][0], 4]})


@pytest.mark.parametrize("table", ["images", "annotations", "categories"])
def test_an_id_that_occurs_twice_is_named(folder, table):
    content = tiny()
    content[table].append(dict(content[table][0]))
    assert f"the id {content[table][0]['id']} occurs twice in '{table}'" in error(folder, content)


@pytest.mark.parametrize(("field", "table"), [("image_id", "images"), ("category_id", "categories")])
def test_an_annotation_of_something_unknown_is_named(folder, field, table):
    content = tiny()
    content["annotations"][1][field] = 99
    assert f"annotation 2: {field} 99 is not among the {table}" in error(folder, content)


@pytest.mark.parametrize(
    ("box", "complaint"),
    [
        ([1, 2, 3], "4 finite numbers"),
        ([1, 2, 3, "4"], "4 finite numbers"),
        ([1, 2, 3, None], "4 finite numbers"),
        ([1, float("nan"), 3, 4], "4 finite numbers"),
        ([1, 2, float("inf"), 4], "4 finite numbers"),
        ([1, 2, 10**400, 4], "4 finite numbers"),
        ([1, 2, 0, 4], "has no area"),
        ([1, 2, 3, -4], "has no area"),
        ([50, 2, 3, 4], "is outside image 12 (50 x 30 pixels)"),
        ([1, -4, 3, 4], "is outside image 12 (50 x 30 pixels)"),
    ],
)
def test_an_impossible_box_is_named(folder, box, complaint):
    content = tiny()
    content["annotations"][0]["bbox"] = box
    message = error(folder, content)
    assert "annotation 1: " in message
    assert complaint in message


def test_a_picture_without_extent_is_named(folder):
    content = tiny()
    content["images"][2]["width"] = 0
    assert "image 7 is 0 x 30 pixels" in error(folder, content)


def test_a_missing_picture_is_named_before_any_is_read(folder):
    (folder / "b.png").unlink()
    with pytest.raises(DataError) as caught:
        load(folder, tiny())
    place = f"{folder / 'b.png'} (image 5 of {folder / 'boxes.json'})"
    assert str(caught.value) == f"{place}: no such file; add it or take its record out"
    (folder / "c.png").unlink()
    with pytest.raises(DataError, match=r"b\.png .* no such file \(and 1 more image is missing\); add it"):
        load(folder, tiny())


def test_a_folder_in_the_place_of_a_picture_is_no_file(folder):
    (folder / "c.png").unlink()
    (folder / "c.png").mkdir()
    with pytest.raises(DataError, match=r"c\.png .* no such file"):
        load(folder, tiny())


def test_a_picture_that_vanishes_later_is_named_when_it_is_read(folder):
    data = load(folder, tiny())
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png .* no such file"):
        data[0]


def test_a_file_that_is_no_picture_is_named(folder):
    (folder / "a.png").write_text("<html>not found</html>")
    assert "not a readable image" in picture_error(folder, "made")


@pytest.mark.parametrize("kind", [OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error])
def test_a_picture_on_which_a_reader_fails_in_any_of_pillows_ways_is_named(folder, monkeypatch, kind):
    def fail(*_args):
        raise kind("Failed to decode frame 0")  # RuntimeError is what the reader of AVIF raises

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert "not a readable image (Failed to decode frame 0)" in picture_error(folder, "read")


@pytest.mark.parametrize(("length", "when"), [(0, "made"), (4, "made"), (60, "read"), (2000, "read")])
def test_a_truncated_picture_is_named(folder, length, when):
    path = folder / "a.png"
    path.write_bytes(path.read_bytes()[:length])
    assert "not a readable image" in picture_error(folder, when)


def test_a_picture_of_another_size_is_named(folder):
    Image.fromarray(pixels(40, 60)).save(folder / "a.png")
    assert "the image is 60 x 40 pixels large, the annotations say 50 x 30" in picture_error(folder, "made")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_size_of_a_picture_on_its_side_is_checked_upright(folder, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "abc":
        Image.fromarray(pixels(WIDTH, HEIGHT)).save(folder / f"{name}.{suffix}", exif=exif)
    content = tiny()
    for image in content["images"]:
        image["file_name"] = image["file_name"].replace("png", suffix)
    assert load(folder, content)[0].image.shape == (3, HEIGHT, WIDTH)
    content["images"][2] |= {"width": HEIGHT, "height": WIDTH}
    with pytest.raises(DataError, match=rf"c\.{suffix} .* is 50 x 30 pixels large, the annotations say 30 x 50"):
        load(folder, content)


def test_a_picture_that_changes_its_size_later_is_named_when_it_is_read(folder):
    data = load(folder, tiny())
    Image.fromarray(pixels(40, 60)).save(folder / "a.png")
    with pytest.raises(DataError, match=r"a\.png .* is 60 x 40 pixels large, the annotations say 50 x 30"):
        data[0]
