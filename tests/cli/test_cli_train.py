"""The verbs `train`, `evaluate` and `demo`: what they print, and what they begin from."""

import json
import re

import pytest
from cli_cases import edit, error_line, train, write_checkpoint

from deform_attn.cli import main
from deform_attn.detr import demo
from deform_attn.detr.data.digits import DigitScenes


def test_train_then_evaluate_print_the_same_metrics(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    trained = capsys.readouterr().out
    assert main(["evaluate", str(folder / "run"), "--data", str(folder)]) == 0
    evaluated = capsys.readouterr().out
    assert "AP50" in evaluated
    assert trained.startswith(evaluated)


def test_a_log_has_what_is_trained_on_and_a_line_for_each_epoch(folder, capsys):
    assert main(["train", "--data", str(folder), "--out", str(folder / "run"), "--epochs", "2", "--queries", "5"]) == 0
    first, *epochs = capsys.readouterr().err.splitlines()
    assert first == "images: 2, categories: block"
    said = r"epoch 1/2, loss \d+\.\d\d, AP50 \d\.\d\d, \d+ s, \d\d:\d\d left", r"epoch 2/2, loss \S+, AP50 \S+, \d+ s"
    assert len(epochs) == 2
    assert all(re.fullmatch(*pair) for pair in zip(said, epochs, strict=True))


def test_control_characters_of_a_category_do_not_reach_the_terminal(folder, capsys):
    for split in ("train", "val"):
        edit(folder / f"{split}.json", lambda truth: truth["categories"][0].update(name="\x1b[31mred\n" + 5000 * "x"))
    assert train(folder, "--queries", "5") == 0
    printed = capsys.readouterr()
    assert r"categories: \x1b[31mred\nxxx" in printed.err
    assert "\x1b[31m" not in printed.out + printed.err
    assert 200 * "x" not in printed.out + printed.err


def test_training_resumes_where_it_ended(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    assert main(["train", "--data", str(folder), "--out", str(folder / "run"), "--queries", "6", "--resume"]) == 1
    assert "num_queries" in error_line(capsys)


def test_a_training_that_has_finished_says_so_where_it_is_resumed_and_how_to_train_further(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    trained = capsys.readouterr().out
    assert train(folder, "--queries", "5", "--resume") == 0
    printed, run = capsys.readouterr(), folder / "run"
    assert printed.out == trained
    assert printed.err == (
        f"deform-attn: {run}: this training has finished, after 1 epoch; to train further, start from its weights: "
        f"--from {run}, with another --out, and --epochs\n"
    )


def test_starting_weights_bring_the_size_of_images_which_is_said_and_an_option_overrides(folder, capsys):
    write_checkpoint(folder / "start", ("block",))
    said = "longer side of images: 60 pixels at most, as in the starting weights; --max-size overrides it\n"
    for options, size in (([], 60), (["--max-size", "48"], 48)):
        assert train(folder, "--from", str(folder / "start"), "--overwrite", *options) == 0
        assert (said in capsys.readouterr().out) == (size == 60)
        assert json.loads((folder / "run" / "config.json").read_text())["max_size"] == size


def test_training_again_needs_to_be_told_what_to_do_with_the_earlier_one(folder, capsys):
    assert train(folder, "--queries", "5") == 0
    capsys.readouterr()
    assert train(folder, "--queries", "5") == 1
    ways = "resume it (--resume), replace it (--overwrite), or choose another folder (--out)"
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
        for name in ("scene.png", "attention.png"):
            assert f"wrote {tmp_path / epochs / name}\n" in printed.out
            assert (tmp_path / epochs / name).read_bytes().startswith(b"\x89PNG")
        assert f"deform-attn: {tmp_path / epochs / 'checkpoint'} holds no training yet" in printed.err
    assert main([*arguments, "--resume"]) == 0
    assert "finished, after 2 epochs; --overwrite trains again\n" in capsys.readouterr().err
    assert main(arguments) == 1
    assert "(--overwrite)" in error_line(capsys)
