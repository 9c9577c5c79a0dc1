"""Names with control characters or thousands of letters: no message has them raw or whole."""

import json

import pytest
from PIL import Image

from deform_attn.detr.checkpoints.starting import Start
from deform_attn.detr.data.base import Category, check_categories
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.data.objects import remarks_on, shown_in
from deform_attn.detr.errors import DataError, printable, quoted

STRANGE = {"a line break": "a\nb", "an escape": "\x1b[31mred", "a NUL": "a\0b", "a surrogate": "\udc80"}
STRANGE |= {"5,000 letters": 5000 * "x", "5,000 of all kinds": 1000 * "\x1b\n\0ab"}
EVERY = pytest.mark.parametrize("name", STRANGE.values(), ids=STRANGE)


def is_plain(text):
    """Return whether `text` is one line of moderate length that a terminal may print."""
    return text.isprintable() and len(text) < 1000


def load(folder, name="0.png", category="tree", **options):
    images = [{"id": 1, "file_name": name, "width": 48, "height": 32}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9]}]
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": category}]}
    (folder / "boxes.json").write_text(json.dumps(truth))
    return CocoFolder(folder / "boxes.json", folder, **options)


@EVERY
@pytest.mark.parametrize("form", ["{}.png", "C:\\{}\\0.png", "/a?d={}"])
def test_a_missing_file_of_a_strange_name_is_named_plainly(tmp_path, form, name):
    with pytest.raises(DataError) as caught:
        load(tmp_path, form.format(name))
    assert is_plain(str(caught.value))
    assert "(image 1 of " in str(caught.value)


@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[31m.png"])
def test_a_damaged_file_of_a_strange_name_is_named_plainly(tmp_path, name):
    try:
        (tmp_path / name).write_text("no image")
    except OSError:
        pytest.skip("the system has no such names")
    with pytest.raises(DataError) as caught:
        load(tmp_path, name)
    assert is_plain(str(caught.value))
    Image.new("RGB", (48, 32)).save(tmp_path / name, "PNG")
    (remark,) = load(tmp_path, f"C:\\{name}").remarks
    assert is_plain(remark)


@EVERY
def test_a_category_of_a_strange_name_is_named_plainly(tmp_path, name):
    Image.new("RGB", (48, 32)).save(tmp_path / "0.png")
    data = load(tmp_path, category=name)
    assert data.categories[0].name == name
    with pytest.raises(DataError) as caught:
        check_categories(data, (Category(1, "tree"),), "data", "the detector")
    shown = shown_in(data.ground_truth() | {"annotations": []})
    for said in (str(caught.value), *remarks_on(shown, None, 1, ""), str(Start(None, (name,), (name,)))):
        assert is_plain(said)


@EVERY
@pytest.mark.parametrize("field", ["id", "width"])
def test_a_strange_text_in_the_place_of_a_number_is_named_plainly(tmp_path, field, name):
    truth = {"images": [{"id": name, "file_name": "0.png", "width": 48, "height": 32} | {field: name}]}
    (tmp_path / "boxes.json").write_text(json.dumps(truth | {"annotations": [1], "categories": [1]}))
    with pytest.raises(DataError) as caught:
        CocoFolder(tmp_path / "boxes.json", tmp_path)
    assert is_plain(str(caught.value))


def test_an_ordinary_name_stays_as_it_is():
    for name in ("b\xe4ume/0.png", "C:\\trees\\0.png", "\u6a39.png"):
        assert printable(name) == name
        assert quoted(name) == repr(name)
    assert (len(printable(5000 * "x")), len(quoted(5000 * "x"))) == (400, 80)
