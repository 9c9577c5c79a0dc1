"""Ctrl-C: what is kept, and what is said of it."""

import pytest
from cli_cases import error_line, interrupt, train

from deform_attn.cli import main
from deform_attn.detr import demo
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.training import engine, validation


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
        f"deform-attn: stopped with epoch 2 of 3 kept in {folder / 'run'}; continue with --resume"
    )
    assert train(folder, *options, "--resume") == 0


def test_ctrl_c_after_the_last_epoch_of_the_demo_says_that_it_is_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "evaluate_model", interrupt)
    monkeypatch.setattr(demo, "DigitScenes", lambda split, length, seed=0: DigitScenes(split, 4, seed=seed))
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 130
    assert f"stopped with epoch 1 of 1 kept in {tmp_path / 'checkpoint'}; continue with" in error_line(capsys)


def test_ctrl_c_elsewhere_is_one_line(folder, capsys, monkeypatch):
    assert train(folder, "--queries", "5") == 0
    capsys.readouterr()
    monkeypatch.setattr(validation, "evaluate_model", interrupt)
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 130
    assert error_line(capsys) == "deform-attn: stopped"


def test_ctrl_c_within_an_epoch_says_how_many_of_its_steps_are_kept(folder, capsys, monkeypatch):
    save = engine.checkpoints.save

    def save_and_stop(*arguments):
        save(*arguments)
        interrupt()

    options = ["--epochs", "2", "--queries", "5", "--batch-size", "1", "--save-every", "1"]
    with monkeypatch.context() as patches:
        patches.setattr(engine.checkpoints, "save", save_and_stop)
        assert train(folder, *options) == 130
    what = f"1 step of epoch 1 of 2 kept in {folder / 'run'}"
    assert error_line(capsys) == f"deform-attn: stopped with {what}; continue with --resume"
    assert train(folder, *options, "--resume") == 0
