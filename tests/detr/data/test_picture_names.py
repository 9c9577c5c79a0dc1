"""Picture names of other systems: found where only one file can be meant, named in the message elsewhere."""

import json
import os

import pytest
from PIL import Image

from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.data.picture_names import find_end, find_files
from deform_attn.detr.data.splits import required_split
from deform_attn.detr.errors import DataError

pytestmark = pytest.mark.skipif(os.sep == "\\", reason="there the names of this test are its own")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


FOREIGN = [
    ("images\\0.png", "images/0.png"),  # Label Studio on Windows
    ("images\\0.png", "0.png"),
    ("train/images/0.png", "images/0.png"),  # relative to another folder
    (".\\images\\0.png", "images/0.png"),
    ("/data/upload/1/0.png", "0.png"),
    ("/data/upload/1/0.png", "upload/1/0.png"),
    ("C:\\Users\\me\\trees\\0.png", "0.png"),
    ("C:/Users/me/trees/0.png", "trees/0.png"),
    ("\\\\server\\share\\0.png", "share/0.png"),
    ("file:///C:/trees/0.png", "trees/0.png"),
    ("file:///home/me/my%20trees/0.png", "my trees/0.png"),
    ("http://localhost:8080/data/upload/1/0.png", "0.png"),
    ("https://somewhere.org/a/0.png?token=a/b#c", "a/0.png"),
    ("/data/local-files/?d=trees/0.png", "trees/0.png"),
    ("/data/local-files/?d=my%20trees%2F0.png", "my trees/0.png"),
    ("/data/local-files/?d=trees%5C0.png", "trees/0.png"),
    ("s3://bucket/trees/0.png", "trees/0.png"),
    ("../images/0.png", "images/0.png"),
    ("images/../../other/0.png", "other/0.png"),
    ("b%C3%A4ume/0.png", "b\xe4ume/0.png"),
]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("0.PNG", "0.png"),  # Windows, and macOS as it comes
        ("Images\\IMG_0.JPG", "images/img_0.jpg"),
        ("ba\u0308ume/0.png", "b\xe4ume/0.png"),  # macOS
        ("b\xe4ume/0.png", "Ba\u0308ume/0.png"),
    ],
)
def test_case_and_the_form_of_accents_are_ignored_where_one_file_is_left(tmp_path, name, file):
    touch(tmp_path, file)
    if (tmp_path / name).exists():
        pytest.skip("the system itself ignores them")
    assert find_files(tmp_path, {5: name}) == ({5: tmp_path / file}, [5], {})


def test_of_two_files_that_differ_in_case_a_third_spelling_means_none(tmp_path):
    touch(tmp_path, "a.png", "A.png")
    if len(os.listdir(tmp_path)) == 1:
        pytest.skip("the system itself ignores case")
    assert find_files(tmp_path, {5: "a.PNG"}).files == {}
    assert find_files(tmp_path, {5: "a.png", 6: "A.png"}).files == {5: tmp_path / "a.png", 6: tmp_path / "A.png"}


def test_a_file_that_is_meant_by_its_own_name_is_not_meant_by_another_spelling(tmp_path):
    touch(tmp_path, "a.png")
    if (tmp_path / "A.png").exists():
        pytest.skip("the system itself ignores case")
    assert find_files(tmp_path, {5: "a.png", 6: "A.png"}) == ({5: tmp_path / "a.png"}, [], {6: tmp_path / "a.png"})


@pytest.mark.parametrize(("name", "file"), FOREIGN)
def test_the_file_is_found_that_the_longest_end_of_a_name_is(tmp_path, name, file):
    touch(tmp_path / "data", file)
    found = find_files(tmp_path / "data", {5: name})
    assert found == ({5: tmp_path / "data" / file}, [5], {})


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("/x/a/b/0.png", ["0.png", "b/0.png", "c/b/0.png"], "b/0.png"),
        ("/local-files/?d=a%2F0.png", ["0.png", "a/0.png"], "a/0.png"),
        ("a%20b.png", ["a%20b.png", "a b.png"], "a%20b.png"),
        ("x/a%20b.png", ["a%20b.png", "a b.png"], "a%20b.png"),
        ("a\\0.png", ["a\\0.png", "a/0.png"], "a\\0.png"),  # both are names of files here
    ],
)
def test_of_several_files_the_one_most_like_the_name_is_found(tmp_path, name, files, expected):
    touch(tmp_path, *files)
    assert find_files(tmp_path, {1: name}).files == {1: tmp_path / expected}


@pytest.mark.parametrize(
    "name", ["../0.png", "..\\0.png", "a/../../0.png", "a\\..\\..\\0.png", "%2e%2e/0.png", "..", "/", ""]
)
def test_the_end_of_a_name_never_leads_out_of_the_folder(tmp_path, name):
    touch(tmp_path, "0.png", "data/1.png")
    assert find_end(tmp_path / "data", name) is None


@pytest.mark.parametrize("name", ["a" * 5000, "x/" * 3000 + "0", "a\0b.png", "http://[/?d=", "?", "://", "\\", "%"])
def test_a_name_that_is_no_name_of_a_file_is_not_found(tmp_path, name):
    assert find_files(tmp_path, {1: name}) == ({}, [], {})


def test_names_that_mean_one_file_are_rivals(tmp_path):
    touch(tmp_path, "0.png", "1.png", "b/2.png", "2.png")
    names = {1: "/x/0.png", 2: "/y/0.png", 3: "1.png", 4: "/x/1.png", 5: "/x/2.png", 6: "/b/2.png"}
    found = find_files(tmp_path, names)
    assert found.rivals == {1: tmp_path / "0.png", 2: tmp_path / "0.png", 4: tmp_path / "1.png"}
    assert found.files == {3: tmp_path / "1.png", 5: tmp_path / "2.png", 6: tmp_path / "b" / "2.png"}
    assert found.moved == [5, 6]


def test_two_records_of_one_name_are_no_rivals(tmp_path):
    touch(tmp_path, "0.png")
    assert find_files(tmp_path, {1: "/x/0.png", 2: "/x/0.png"}).moved == [1, 2]


def write(folder, *names):
    """Write the annotations of pictures with these names, a box in each."""
    images = [{"id": i, "file_name": name, "width": 48, "height": 32} for i, name in enumerate(names, 1)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 9, 9]} for i in range(1, len(names) + 1)]
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "tree"}]}
    (folder / "result.json").write_text(json.dumps(truth))


@pytest.mark.parametrize("place", ["", "images", "images/default"])
@pytest.mark.parametrize("prefix", ["images\\", "C:\\trees\\", "/data/upload/1/", "/data/local-files/?d=trees%2F"])
def test_a_single_json_of_another_system_is_read_and_said(tmp_path, place, prefix):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (48, 32), colour).save(tmp_path / place / f"{i}.png")
    write(tmp_path, f"{prefix}0.png", f"{prefix}1.png")
    data = CocoFolder(*required_split(tmp_path, "train"))
    assert [sample.image[:, 0, 0].tolist() for sample in data] == [[1, 0, 0], [0, 0, 1]]
    (remark,) = data.remarks
    first = f"the first, {prefix + '0.png'!r}, as {tmp_path / place / '0.png'}"
    assert remark.endswith(f"2 of 2 images were found by the ends of their file names, {first}")
    assert [image["file_name"] for image in data.ground_truth()["images"]] == [f"{prefix}0.png", f"{prefix}1.png"]


def test_a_picture_of_another_size_under_a_name_of_another_system_is_refused(tmp_path):
    Image.new("RGB", (32, 48)).save(tmp_path / "0.png")
    write(tmp_path, "C:\\0.png")
    with pytest.raises(DataError, match=r"0\.png .*is 32 x 48 pixels large, the annotations say 48 x 32"):
        CocoFolder(tmp_path / "result.json", tmp_path)


def message(folder, **options):
    with pytest.raises(DataError) as caught:
        CocoFolder(folder / "result.json", folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_picture_under_a_name_of_another_system_names_this_cause(tmp_path):
    write(tmp_path, "C:\\trees\\0.png")
    said = message(tmp_path)
    assert "(image 1 of " in said
    assert "no such file; 'C:\\\\trees\\\\0.png' seems to be from another system, and no end of it is" in said


def test_names_of_another_system_that_may_mean_one_file_are_refused_or_skipped(tmp_path):
    for name in ("0.png", "1.png"):
        Image.new("RGB", (48, 32)).save(tmp_path / name)
    write(tmp_path, "/a/0.png", "/b/0.png", "/a/1.png")
    assert f"several records could mean {tmp_path / '0.png'}; make each file_name" in message(tmp_path)
    data = CocoFolder(tmp_path / "result.json", tmp_path, skip_bad=True)
    assert [sample.image_id for sample in data] == [3]
    assert len(data.skipped) == 2
