"""The command line: what it prints, and that bad input gives one line and no traceback."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from PIL import Image

from deform_attn import speed
from deform_attn.cli import main
from deform_attn.detr import demo, engine, validation
from deform_attn.detr.data.digits import DigitScenes


@pytest.fixture
def folder(tmp_path):
    """A folder with two training pictures, one validation picture, and a box in each."""
    for split, count in (("train", 2), ("val", 1)):
        (tmp_path / split).mkdir()
        images, annotations = [], []
        for i in range(count):
            picture = Image.new("RGB", (64, 48), "black")
            picture.paste("white", (10 + i, 10, 30, 34))
            picture.save(tmp_path / split / f"{i}.png")
            images.append({"id": i + 1, "file_name": f"{i}.png", "width": 64, "height": 48})
            box = {"bbox": [10 + i, 10, 20 - i, 24], "area": (20 - i) * 24, "iscrowd": 0}
            annotations.append({"id": i + 1, "image_id": i + 1, "category_id": 3, **box})
        truth = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "block"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(truth))
    return tmp_path


def edit(path, change):
    truth = json.loads(path.read_text())
    change(truth)
    path.write_text(json.dumps(truth))


def train(folder, *options):
    return main(["train", "--data", str(folder), "--out", str(folder / "run"), "--epochs", "1", *options])


def error_line(capsys):
    """Return the last line that was printed, after checking that there is no traceback."""
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("deform-attn: ")]
    assert len(lines) == 1
    return lines[0]


def test_train_then_evaluate_print_the_same_metrics(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    trained = capsys.readouterr().out
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 0
    evaluated = capsys.readouterr().out
    assert "AP50" in evaluated
    assert trained.startswith(evaluated)


def test_training_resumes_where_it_ended(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    assert main(["train", "--data", str(folder), "--out", str(folder / "run"), "--queries", "6", "--resume"]) == 1
    assert "num_queries" in error_line(capsys)


def test_info_lists_backends_and_versions(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed
    assert "grid_sample" in printed
    assert "reference" in printed


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
    monkeypatch.setattr("deform_attn.detr.engine.train_one_epoch", None)
    assert main(["train", "--data", str(folder), "--out", str(folder / "val.json" / "run")]) == 1
    assert "val.json" in error_line(capsys)


def test_training_again_needs_to_be_told_what_to_do_with_the_earlier_one(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    capsys.readouterr()
    assert train(folder, "--queries", "5") == 1
    ways = "go on with it (--resume), replace it (--overwrite), or choose another folder (--out)"
    # All that is printed: no progress bar either.
    assert capsys.readouterr() == ("", f"deform-attn: error: {folder / 'run'}: holds a training; {ways}\n")
    assert train(folder, "--queries", "5", "--overwrite") == 0
    assert train(folder, "--queries", "5", "--resume") == 0
    with pytest.raises(SystemExit):
        train(folder, "--resume", "--overwrite")


def test_a_checkpoint_in_the_current_folder_is_evaluated_and_resumed(folder, capsys, monkeypatch):
    assert train(folder, "--queries", "5") == 0
    monkeypatch.chdir(folder / "run")
    assert main(["evaluate", ".", "--data", ".."]) == 0
    options = ["--data", "..", "--out", ".", "--epochs", "1", "--queries", "5"]
    assert main(["train", *options, "--resume"]) == 0
    assert main(["train", *options, "--overwrite"]) == 0
    assert main(["evaluate", ".", "--data", ".."]) == 0


@pytest.mark.parametrize("verb", ["train", "demo"])
@pytest.mark.parametrize("seed", ["-1", str(2**31), str(10**30)])
def test_a_seed_out_of_range_is_one_line(folder, capsys, verb, seed):
    options = ["--data", str(folder)] if verb == "train" else []
    assert main([verb, *options, "--out", str(folder / "run"), f"--seed={seed}"]) == 1
    assert "seed: must be in [0, 2**31)" in error_line(capsys)


def test_categories_that_differ_are_one_line_before_training_and_in_evaluation(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    capsys.readouterr()
    edit(folder / "val.json", lambda truth: truth["categories"][0].update(name="ball"))
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 1
    assert "'ball' (id 3), the detector's is 'block' (id 3)" in error_line(capsys)
    assert main(["train", "--data", str(folder), "--out", str(folder / "other")]) == 1
    assert "validation data: category 1 is 'ball'" in error_line(capsys)
    assert not (folder / "other").exists()


@pytest.mark.parametrize("arguments", [[], ["train"], ["train", "--data", "x", "--out", "y", "--epochs", "0"], ["fly"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: deform-attn" in capsys.readouterr().err


def interrupt(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_ctrl_c_says_that_nothing_is_kept_and_leaves_an_earlier_training_alone(folder, capsys, monkeypatch):
    nothing = "deform-attn: stopped in the first epoch; nothing of this training is kept"
    with monkeypatch.context() as patches:
        patches.setattr(engine, "train_one_epoch", interrupt)
        assert train(folder, "--queries", "5") == 130
    assert error_line(capsys) == nothing
    assert train(folder, "--queries", "5") == 0
    capsys.readouterr()
    monkeypatch.setattr(engine, "train_one_epoch", interrupt)
    assert train(folder, "--queries", "5", "--overwrite") == 130
    assert error_line(capsys) == f"{nothing}; {folder / 'run'} still holds the earlier one"
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 0


@pytest.mark.parametrize("stopped", ["train_one_epoch", "evaluate_model", "checkpoints.save"])
def test_ctrl_c_says_which_epoch_is_kept_and_that_one_can_go_on(folder, capsys, monkeypatch, stopped):
    owner, name = (engine.checkpoints, "save") if "." in stopped else (engine, stopped)
    function, calls = getattr(owner, name), []
    # Each epoch saves twice, before and after its evaluation; the fourth time is that after the second's.
    last = {"train_one_epoch": 3, "evaluate_model": 2, "checkpoints.save": 4}[stopped]

    def until_the_last(*arguments):
        calls.append(arguments)
        return interrupt() if len(calls) == last else function(*arguments)

    options = ["--epochs", "3", "--queries", "5"]
    with monkeypatch.context() as patches:
        patches.setattr(owner, name, until_the_last)
        assert train(folder, *options) == 130
    assert error_line(capsys) == (
        f"deform-attn: stopped with epoch 2 of 3 kept in {folder / 'run'}; go on from there with --resume"
    )
    assert train(folder, *options, "--resume") == 0


def test_ctrl_c_after_the_last_epoch_of_the_demo_says_that_it_is_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "evaluate_model", interrupt)
    monkeypatch.setattr(demo, "DigitScenes", lambda split, length, seed=0: DigitScenes(split, 4, seed=seed))
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 130
    assert f"stopped with epoch 1 of 1 kept in {tmp_path / 'checkpoint'}; go on" in error_line(capsys)


def test_ctrl_c_elsewhere_is_one_line(folder, capsys, monkeypatch):
    assert train(folder, "--queries", "5") == 0
    capsys.readouterr()
    monkeypatch.setattr(validation, "evaluate_model", interrupt)
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 130
    assert error_line(capsys) == "deform-attn: stopped"


@pytest.mark.parametrize("there", [True, False])
def test_resuming_where_there_is_no_training_says_that_one_begins(folder, capsys, there):
    if there:
        (folder / "run").mkdir()
    assert train(folder, "--queries", "5", "--resume") == 0
    assert error_line(capsys) == f"deform-attn: {folder / 'run'} holds no training yet; a new one begins"
    assert train(folder, "--queries", "5", "--resume") == 0
    assert "begins" not in capsys.readouterr().err


def test_the_demo_resumes_like_a_training_and_counts_in_proper_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "DigitScenes", lambda split, length, seed=0: DigitScenes(split, 4, seed=seed))
    for epochs, said in (("1", r"\n1 epoch of \d+ s, \d+ s for"), ("2", r"\n2 epochs of \d+ s on average, \d+ s for")):
        arguments = ["demo", "--out", str(tmp_path / epochs), "--epochs", epochs]
        assert main([*arguments, "--resume"]) == 0
        printed = capsys.readouterr()
        assert re.search(said, printed.out)
        assert f"deform-attn: {tmp_path / epochs / 'checkpoint'} holds no training yet" in printed.err
    assert main(arguments) == 1
    assert "(--overwrite)" in error_line(capsys)


def test_a_missing_validation_picture_is_one_line_before_the_first_step(folder, capsys, monkeypatch):
    monkeypatch.setattr(engine, "train_one_epoch", None)
    (folder / "val" / "0.png").unlink()
    assert train(folder) == 1
    place = f"{folder / 'val' / '0.png'} (image 1 of {folder / 'val.json'})"
    assert error_line(capsys) == f"deform-attn: error: {place}: there is no such file; add it or take its record out"


def test_version_prints_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"deform-attn {version('deform-attn')}\n"


def test_bench_compares_with_grid_sample_on_the_threads_asked_for(capsys, monkeypatch):
    tiny = replace(speed.DEC300, spatial_shapes=((9, 13), (5, 7), (3, 4), (2, 3)), queries=21)
    for name in ("ENC800", "ENC640", "DEC300"):
        monkeypatch.setattr(speed, name, replace(tiny, name=name.lower()))
    monkeypatch.setattr(speed.report, "__defaults__", (0.0,))
    before = torch.get_num_threads()
    try:
        for threads, said in ((2, "2 threads"), (1, "1 thread")):
            assert main(["bench", "--threads", str(threads)]) == 0
            first, *others = capsys.readouterr().out.splitlines()
            assert f", {said}, torch" in first
            assert len(others) == 5
            assert others[1].startswith("enc800, 21 queries, forward")
    finally:
        torch.set_num_threads(before)


def test_bench_shows_each_line_as_soon_as_it_is_known(monkeypatch):
    flushed = []
    monkeypatch.setattr("builtins.print", lambda *_, flush=False, **__: flushed.append(flush))
    monkeypatch.setattr(speed, "report", lambda: iter("ab"))
    assert main(["bench"]) == 0
    assert flushed[:2] == [True, True]


@pytest.mark.parametrize(("argument", "unbuffered"), [("info", ""), ("info", "1"), ("--help", "")])
def test_a_reader_that_has_gone_is_no_error(argument, unbuffered):
    read, write = os.pipe()
    os.close(read)
    command, environment = (
        [sys.executable, "-m", "deform_attn", argument],
        {**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    try:
        result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment)
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_the_package_runs_as_the_command():
    command = [sys.executable, "-m", "deform_attn", "info"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("deform-attn ")


def test_a_bug_of_ours_keeps_its_traceback(folder, monkeypatch):
    def fail(*_args, **_kwargs):
        raise ValueError("nobody's input")

    monkeypatch.setattr("deform_attn.detr.engine.fit", fail)
    with pytest.raises(ValueError, match="nobody's input"):
        train(folder)
