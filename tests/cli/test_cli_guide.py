"""The guide to training, docs/guides/train.md: its commands and its script run, and its faults have these messages."""

import csv
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cli_cases import edit, train, write_split
from PIL import Image

from deform_attn.cli import main
from deform_attn.detr.drawing.marks import category_colour

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "train.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = "".join(text for language, text in BLOCKS if not language).splitlines()
FAULTS_OF_PAGE = re.findall(r"^\| `(.*?)` \|", PAGE.partition("## Common faults")[2], re.MULTILINE)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Return the current folder, in which `trees` and `new-images` are what the page calls so."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 2), ("val", 1)):
        write_split(Path("trees", f"{split}.json"), Path("trees", split), count)
    Path("new-images").mkdir()
    Image.open("trees/val/0.png").save("new-images/1.jpg")
    return tmp_path


def follow(command):
    """Run a command of the page; a training is cut to one epoch."""
    words = shlex.split(command)
    if words[0] != "deform-attn":
        assert shutil.which(words[0])
        subprocess.run(words, check=True)
        return
    assert main([*words[1:], *(["--epochs", "1"] if words[1] == "train" else [])]) == 0, command


def test_the_commands_of_the_page_lead_from_images_to_a_detector_that_is_used(data, capsys):
    assert len(COMMANDS) > 9
    for command in COMMANDS:
        follow(command)
    assert "error" not in capsys.readouterr().err
    with open("runs/trees/metrics.csv", encoding="utf-8") as lines:
        columns = next(csv.reader(lines))
    table = PAGE.partition("| column | what it is |")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.MULTILINE)))
    assert len(named) > 6
    assert set(named) <= set(columns)
    assert {path.name for path in Path("trees-detector").iterdir()} == {"config.json", "model.safetensors"}
    assert all(Path(out, "predictions.json").is_file() for out in ("found", "found-again"))
    assert Path("1.html").is_file()


def test_the_script_of_the_page_draws_the_boxes(data):
    (script,) = [text for language, text in BLOCKS if language == "py"]
    exec(compile(script, "docs/guides/train.md", "exec"), {})
    with Image.open("boxes.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert tuple(bytes.fromhex(category_colour(0).removeprefix("#"))) in colours


def change(table, split="train", every=False, **values):
    """Return what changes the first record of a table, or every one."""
    return lambda folder: edit(
        folder / f"{split}.json", lambda truth: [one.update(values) for one in truth[table][: None if every else 1]]
    )


def repeat(folder):
    """Let the first image have two objects."""
    edit(folder / "train.json", lambda truth: truth["annotations"].append({**truth["annotations"][0], "id": 9}))


def fill_memory(*_args, **_kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory.")


# Of each message: what spoils the folder, the exit status, and further options of `train`.
FAULTS = {
    "there is no train split; looked for": (lambda folder: (folder / "train.json").unlink(), 1),
    "no such folder; pass the folder that holds the images": (
        lambda folder: (folder / "train").rename(folder / "pictures"),
        1,
    ),
    "no such file": (lambda folder: (folder / "train" / "1.png").unlink(), 1),
    "not a readable image": (lambda folder: (folder / "train" / "1.png").write_text("not an image"), 1),
    "pixels large, the annotations say": (change("images", width=48, height=64), 1),
    "is outside image": (change("annotations", bbox=[70, 10, 90, 34]), 1),
    "boxes extend beyond their image and are clipped": (change("annotations", bbox=[40, 10, 64, 34]), 0),
    "has no area": (change("annotations", bbox=[10, 10, 0, 24]), 1),
    "have iscrowd = 1": (change("annotations", every=True, iscrowd=1), 1),
    "give both the same categories": (change("categories", split="val", name="ball"), 1),
    "there is no val split, so there are no metrics": (lambda folder: (folder / "val.json").unlink(), 0),
    "have more objects than the detector has queries": (repeat, 0, "--queries", "1"),
    "have a model of their own; leave out either": (None, 1, "--from", "run", "--queries", "5"),
    "this training began with": (train, 1, "--resume", "--lr", "0.01"),
    "is not finite; a smaller learning rate may help": (None, 1, "--lr", "1e30", "--batch-size", "1"),
    "out of memory": (None, 1),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_has_the_message_of_the_page(message, folder, capsys, monkeypatch):
    spoil, status, *options = FAULTS[message]
    if message == "out of memory":
        monkeypatch.setattr("deform_attn.detr.training.run.fit", fill_memory)
    if spoil is not None:
        spoil(folder)
    capsys.readouterr()
    assert train(folder, *options) == status
    assert message in capsys.readouterr().err


def test_a_checkpoint_that_is_not_on_this_disk_has_the_message_of_the_page(folder, capsys):
    assert main(["evaluate", "trees/detector", "--data", str(folder)]) == 1
    *others, message = FAULTS_OF_PAGE
    assert message in capsys.readouterr().err
    assert others == [*FAULTS]
