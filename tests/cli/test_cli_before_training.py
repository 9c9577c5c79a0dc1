"""What is said before the first step: data that are too little to learn from, and more objects than can be found."""

import pytest
from cli_cases import edit, error_line, train, write_checkpoint, write_split

from deform_attn.cli import main
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.data.holdout import hold_out
from deform_attn.detr.training import engine


def repeat(count, **values):
    """Return a change that leaves of the annotations the first one, `count` times."""

    def change(truth):
        first = truth["annotations"][0]
        truth["annotations"] = [first | {"id": i} | values for i in range(1, count + 1)]

    return change


def test_more_objects_than_queries_are_said_with_the_setting(folder, capsys):
    edit(folder / "train.json", repeat(200))
    assert train(folder, "--queries", "30") == 0
    assert error_line(capsys) == (
        f"deform-attn: {folder}: 1 of 2 training images have more objects than the detector has queries (30), up to "
        "200; it cannot find all of them: train with --queries 200 (num_queries in the config file)"
    )


def test_more_objects_than_the_queries_of_starting_weights_are_said_with_the_way_out(folder, capsys, tmp_path):
    write_checkpoint(tmp_path / "start", names=("block",))
    edit(folder / "train.json", repeat(7))
    assert train(folder, "--from", str(tmp_path / "start")) == 0
    line = error_line(capsys)
    assert "than the detector has queries (5), up to 7; " in line
    cure = "leave out --from, and train with --queries 7 (num_queries in the config file)"
    assert line.endswith(f"; it cannot find all of them: the starting weights fix that number; {cure}")


def test_what_is_said_is_said_before_the_first_step(folder, capsys, monkeypatch):
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "train_one_epoch", stop)
    edit(folder / "train.json", repeat(6))
    assert train(folder, "--queries", "5") == 130
    assert "than the detector has queries (5), up to 6" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_that_are_all_crowds_are_one_line_before_training(folder, capsys, split):
    edit(folder / f"{split}.json", lambda truth: [one.update(iscrowd=1) for one in truth["annotations"]])
    assert train(folder) == 1
    line = error_line(capsys)
    assert line.startswith(f"deform-attn: error: {folder / split}.json: there is no object to find, all ")
    assert not (folder / "run").exists()


def test_evaluating_on_nothing_but_crowds_is_one_line(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    capsys.readouterr()
    edit(folder / "val.json", lambda truth: truth["annotations"][0].update(iscrowd=1))
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 1
    assert "have iscrowd = 1" in error_line(capsys)


def test_a_category_without_a_training_object_is_said(folder, capsys):
    for split in ("train", "val"):
        edit(folder / f"{split}.json", lambda truth: truth["categories"].append({"id": 4, "name": "ball"}))
    assert train(folder, "--queries", "5") == 0
    line = error_line(capsys)
    assert f"{folder}: no training image has an object of 'ball', so the detector does not learn them; " in line


def number_category(number):
    """Return a change that gives the only category this id."""

    def change(truth):
        truth["categories"][0]["id"] = number
        for one in truth["annotations"]:
            one["category_id"] = number

    return change


@pytest.fixture
def one_json(tmp_path):
    """A folder with four pictures and one json, as labelling tools export them."""
    write_split(tmp_path / "labels.json", tmp_path / "images", 4)
    return tmp_path


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (True, "training split: none of the 3 images has an object to find; hold out less (--hold-out)"),
        (False, "validation split: none of the 1 images has an object to find; hold out more (--hold-out)"),
    ],
)
def test_a_part_without_an_object_is_one_line_that_says_how_much_to_hold_out(one_json, capsys, held_out, message):
    part = hold_out(CocoFolder(one_json / "labels.json", one_json / "images"), 0.3)[1]
    (held,) = (image["id"] for image in part.ground_truth()["images"])
    edit(
        one_json / "labels.json",
        lambda truth: truth.update(
            annotations=[one for one in truth["annotations"] if (one["image_id"] == held) == held_out]
        ),
    )
    assert train(one_json, "--hold-out", "0.3") == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"deform-attn: error: {one_json}, {message}"
    assert not (one_json / "run").exists()
    write_checkpoint(one_json / "start", names=("block",))
    edit(one_json / "labels.json", number_category(10))  # as in the checkpoint
    status = main(["evaluate", str(one_json / "start"), "--data", str(one_json), "--hold-out", "0.3"])
    error = f"{one_json}: none of the 1 images has an object to find; hold out more (--hold-out)"
    assert status == (0 if held_out else 1)
    assert held_out or error_line(capsys) == f"deform-attn: error: {error}"


@pytest.mark.parametrize("prefix", ["images\\", "C:\\blocks\\", "/data/upload/1/"])
def test_pictures_under_names_of_another_system_are_trained_on_and_said(one_json, capsys, prefix):
    def rename(truth):
        for image in truth["images"]:
            image["file_name"] = prefix + image["file_name"]

    edit(one_json / "labels.json", rename)
    assert train(one_json, "--hold-out", "0.3", "--queries", "5") == 0
    assert "4 of 4 images were found by the ends of their file names, the first, " in capsys.readouterr().err


def test_two_categories_of_one_name_train_further_with_their_own_weights(folder, capsys):
    for split in ("train", "val"):
        edit(folder / f"{split}.json", lambda truth: truth["categories"].insert(0, {"id": 0, "name": "block"}))
    assert train(folder, "--queries", "5") == 0
    assert "an object of 'block' (id 0), so the detector does not learn" in error_line(capsys)
    assert (
        main(
            [
                "train",
                "--data",
                str(folder),
                "--out",
                str(folder / "more"),
                "--epochs",
                "1",
                "--from",
                str(folder / "run"),
            ]
        )
        == 0
    )
    assert "all 2 categories are known" in capsys.readouterr().out


def test_metrics_of_pictures_with_more_than_100_objects_say_how_many_detections_count(folder, capsys):
    edit(folder / "val.json", repeat(150))
    assert train(folder, "--queries", "150") == 0
    trained = capsys.readouterr().out
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 0
    evaluated = capsys.readouterr().out
    assert trained.startswith(evaluated)
    assert "AR150" in evaluated
    assert evaluated.endswith("up to 150 detections per image count, since COCO's 100 are fewer than the objects\n")
