"""Bad input to `train` and `evaluate`: one line, no traceback, exit status 1."""

import pytest
from cli_cases import edit, error_line, train

from deform_attn.cli import main
from deform_attn.detr.training import engine


def test_a_file_that_is_no_picture_is_one_line_with_its_name(folder, capsys):
    (folder / "train" / "1.png").write_text("not a picture")
    assert train(folder) == 1
    assert "1.png" in error_line(capsys)


def test_an_empty_annotation_file_is_one_line_with_its_name(folder, capsys):
    (folder / "train.json").write_text("")
    assert train(folder) == 1
    assert "train.json" in error_line(capsys)


@pytest.mark.parametrize("table", ["images", "annotations"])
def test_an_annotation_file_without_records_is_one_line(folder, capsys, table):
    edit(folder / "val.json", lambda truth: truth[table].clear())
    assert train(folder) == 1
    assert "val.json" in error_line(capsys)


def test_a_bad_category_id_is_one_line_with_the_id(folder, capsys):
    edit(folder / "train.json", lambda truth: truth["annotations"][1].update(category_id=77))
    assert train(folder) == 1
    line = error_line(capsys)
    assert "77" in line
    assert "train.json" in line


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    assert train(tmp_path / "nowhere") == 1
    assert "nowhere" in error_line(capsys)


def test_a_checkpoint_that_is_not_there_is_one_line(folder, capsys):
    assert main(["evaluate", str(folder / "nothing"), "--data", str(folder)]) == 1
    assert "nothing" in error_line(capsys)


def test_a_file_in_the_place_of_the_output_folder_is_one_line(folder, capsys):
    (folder / "run").write_text("in the way")
    assert train(folder, "--queries", "5") == 1
    assert "run" in error_line(capsys)
    assert (folder / "run").read_text() == "in the way"


def test_an_output_folder_that_cannot_be_made_is_one_line_before_training(folder, capsys, monkeypatch):
    monkeypatch.setattr("deform_attn.detr.training.engine.train_one_epoch", None)
    assert main(["train", "--data", str(folder), "--out", str(folder / "val.json" / "run")]) == 1
    assert "val.json" in error_line(capsys)


@pytest.mark.parametrize("verb", ["train", "demo"])
@pytest.mark.parametrize("seed", ["-1", str(2**31), str(10**30)])
def test_a_seed_out_of_range_is_one_line(folder, capsys, verb, seed):
    options = ["--data", str(folder)] if verb == "train" else []
    assert main([verb, *options, "--out", str(folder / "run"), f"--seed={seed}"]) == 1
    assert "seed: must be from 0 to 2147483647, got " in error_line(capsys)


def test_categories_that_differ_are_one_line_before_training_and_in_evaluation(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    capsys.readouterr()
    edit(folder / "val.json", lambda truth: truth["categories"][0].update(name="ball"))
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 1
    val, kept = folder / "val.json", f"the checkpoint {folder / 'run'}"
    cure = "give both the same categories, with the same ids and names"
    assert error_line(capsys) == (
        f"deform-attn: error: the categories of {val} and {kept} differ; only in {val}: 'ball' (id 3); "
        f"only in {kept}: 'block' (id 3); {cure}"
    )
    assert main(["train", "--data", str(folder), "--out", str(folder / "other")]) == 1
    assert error_line(capsys) == (
        f"deform-attn: error: the categories of {val} and {folder / 'train.json'} differ; only in {val}: "
        f"'ball' (id 3); only in {folder / 'train.json'}: 'block' (id 3); {cure}"
    )
    assert not (folder / "other").exists()


def test_a_missing_validation_picture_is_one_line_before_the_first_step(folder, capsys, monkeypatch):
    monkeypatch.setattr(engine, "train_one_epoch", None)
    (folder / "val" / "0.png").unlink()
    assert train(folder) == 1
    place = f"{folder / 'val' / '0.png'} (image 1 of {folder / 'val.json'})"
    assert error_line(capsys) == f"deform-attn: error: {place}: no such file; add it or take its record out"
