"""The splits of a data set: the layouts that are known, and what is said where there is none."""

import json

import pytest

from deform_attn.detr.data.splits import Split, find_split, looked_for, required_split
from deform_attn.detr.errors import DataError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "annotations", "images"),
    [
        ("train", "train.json", "train"),
        ("train", "annotations/instances_train2017.json", "train2017"),
        ("train", "annotations/instances_train.json", "train"),
        ("train", "train/_annotations.coco.json", "train"),
        ("val", "val.json", "val"),
        ("val", "annotations/instances_val2014.json", "val2014"),
        ("val", "valid/_annotations.coco.json", "valid"),
        ("val", "valid.json", "valid"),
    ],
)
def test_each_layout_is_found(tmp_path, name, annotations, images):
    touch(tmp_path, annotations)
    expected = Split(tmp_path / annotations, tmp_path / images)
    assert find_split(tmp_path, name) == required_split(tmp_path, name) == expected
    assert find_split(tmp_path, "val" if name == "train" else "train") is None


def test_coco_pictures_may_lie_in_images(tmp_path):
    touch(tmp_path, "annotations/instances_train2017.json", "images/train2017/1.jpg")
    assert find_split(tmp_path, "train").images == tmp_path / "images" / "train2017"


@pytest.mark.parametrize(
    ("file", "name", "place", "images"),
    [
        ("result.json", "images/a.jpg", "images/a.jpg", "."),  # as Label Studio exports
        ("annotations/instances_default.json", "a.jpg", "images/default/a.jpg", "images/default"),  # as CVAT does
        ("labels.json", "a.jpg", "images/a.jpg", "images"),
        ("labels.json", "a.jpg", "a.jpg", "."),
        ("annotations.json", "a.jpg", "train/a.jpg", "train"),  # the only folder of images, whatever its name
        ("annotations.json", "C:\\trees\\a.jpg", "train/a.jpg", "train"),
        ("labels.json", "a.jpg", "elsewhere/b.jpg", "."),  # reading it will tell
    ],
)
def test_a_single_json_file_is_the_training_split(tmp_path, file, name, place, images):
    touch(tmp_path, file, place)
    (tmp_path / file).write_text(json.dumps({"images": [{"id": 1, "file_name": name}]}))
    assert required_split(tmp_path, "train") == Split(tmp_path / file, tmp_path / images)
    assert find_split(tmp_path, "val") is None
    touch(tmp_path, "val.json")
    assert find_split(tmp_path, "train") == Split(tmp_path / file, tmp_path / images)
    touch(tmp_path, "train.json")
    assert find_split(tmp_path, "train").annotations == tmp_path / "train.json"


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', '{"images": [{"file_name": 3}]}', "7"])
def test_a_single_file_that_is_no_data_set_is_left_to_its_reader(tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    assert find_split(tmp_path, "train") == Split(tmp_path / "odd.json", tmp_path)


def test_of_several_json_files_none_is_taken(tmp_path):
    touch(tmp_path, "a.json", "annotations/b.json")
    assert find_split(tmp_path, "train") is None
    with pytest.raises(
        DataError,
        match=r"; there are several json files \(a\.json, annotations/b\.json\): call one train\.json, and the",
    ):
        required_split(tmp_path, "train")


def test_other_files_beside_the_annotations_are_no_split(tmp_path):
    touch(tmp_path, "annotations/instances_trainval2014.json", "annotations/person_keypoints_train2017.json")
    touch(tmp_path, "annotations/instances_valminusminival2014.json")  # three files, so that none is the only one
    assert find_split(tmp_path, "train") is None
    assert find_split(tmp_path, "val") is None


def test_of_two_folders_that_hold_the_images_of_a_single_json_file_none_is_chosen(tmp_path):
    touch(tmp_path, "annotations.json", "train/a.jpg", "test/a.jpg")
    (tmp_path / "annotations.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}]}))
    assert required_split(tmp_path, "train").images == tmp_path


def test_a_missing_split_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError) as caught:
        required_split(tmp_path, "val")
    cure = "use --hold-out 0.1 to evaluate on a tenth of the train split"
    assert str(caught.value) == f"{tmp_path}: there is no val split; looked for {looked_for('val')}; {cure}"
    assert looked_for("val") == (
        "val.json, annotations/instances_val*.json, val/_annotations.coco.json, "
        "valid.json, annotations/instances_valid*.json, valid/_annotations.coco.json"
    )


def test_a_missing_training_split_is_an_error_that_says_how_to_lay_it_out(tmp_path):
    touch(tmp_path, "images/0.png")
    with pytest.raises(DataError) as caught:
        required_split(tmp_path, "train")
    cure = "put the annotations there, exported as COCO JSON, and pass the folder that holds them and the images"
    assert str(caught.value) == f"{tmp_path}: there is no train split; looked for {looked_for('train')}; {cure}"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("train", "trees/train.json"),
        ("train", "trees/annotations/instances_train2017.json"),
        ("train", "trees/result.json"),
        ("val", "trees/valid/_annotations.coco.json"),
    ],
)
def test_a_split_one_folder_further_down_is_pointed_out(tmp_path, name, file):
    touch(tmp_path, file, "other/0.png")
    with pytest.raises(DataError, match=rf"; pass {tmp_path / 'trees'}, which has one$"):
        required_split(tmp_path, name)


def test_a_folder_that_is_not_there_and_two_splits_of_one_name_are_errors(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        find_split(tmp_path / "nowhere", "train")
    touch(tmp_path, "train.json", "train/_annotations.coco.json")
    with pytest.raises(DataError, match=r"train\.json: this is a file; pass the folder that holds it and the images"):
        find_split(tmp_path / "train.json", "train")
    with pytest.raises(DataError, match=r"train.json and train/_annotations.coco.json are both a train split"):
        find_split(tmp_path, "train")
