"""A run from Python, on a folder with four images and one json file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deform_attn.cli import main
from deform_attn.detr.checkpoints.checkpoint import load_model
from deform_attn.detr.config.run import Settings
from deform_attn.detr.errors import ConfigError, DataError
from deform_attn.detr.training.run import prepare, train_folder

MODEL = {
    "backbone": {"channels": [8, 8, 16, 16]},
    "transformer": {
        "width": 16, "num_heads": 2, "feedforward_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 5,
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "block"}]}
    (tmp_path / "data" / "images").mkdir(parents=True)
    for i in range(1, 5):
        picture = Image.new("RGB", (64, 48), "black")
        picture.paste("white", (10 + i, 10, 30, 34))
        picture.save(tmp_path / "data" / "images" / f"{i}.png")
        truth["images"].append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 48})
        box = {"bbox": [10 + i, 10, 20 - i, 24], "area": 24 * (20 - i), "iscrowd": 0}
        truth["annotations"].append({"id": i, "image_id": i, "category_id": 3, **box})
    (tmp_path / "data" / "labels.json").write_text(json.dumps(truth))
    return tmp_path


def settings(folder: Path, **layers: Any) -> Settings:
    data = {"dir": str(folder / "data"), "hold_out": 0.25}
    return Settings.from_layers({"data": data, "model": MODEL, "train": {"epochs": 1}}, layers)


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_train_folder_trains_as_the_command_does(folder: Path) -> None:
    (folder / "run.toml").write_text(settings(folder).to_toml())
    assert main(["train", "--config", str(folder / "run.toml"), "--out", str(folder / "command")]) == 0
    lines: list[str] = []
    history = train_folder(settings(folder), folder / "function", on_remark=lines.append)
    first, second = (load_model(folder / name) for name in ("command", "function"))
    assert same_weights(first.model, second.model)
    assert (first.categories, first.max_size) == (second.categories, second.max_size)
    assert [{"loss", "AP", "AP50"} <= record.keys() for record in history] == [True]
    assert lines == [f"{folder / 'data'}: 1 of 4 images are held out to validate on"]


def test_train_folder_resumes(folder: Path) -> None:
    first = train_folder(settings(folder), folder / "run")
    assert train_folder(settings(folder), folder / "run", resume=True) == first


def test_preparing_writes_nothing_and_leaves_the_random_numbers_alone(folder: Path) -> None:
    before, state = sorted(folder.rglob("*")), torch.get_rng_state()
    run = prepare(settings(folder))
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(folder.rglob("*")) == before
    assert run.validation is not None
    assert (len(run.data), len(run.validation), run.start) == (3, 1, None)
    assert same_weights(prepare(settings(folder)).detector.model, run.detector.model)
    assert not same_weights(prepare(settings(folder, train={"seed": 1})).detector.model, run.detector.model)


def test_starting_weights_bring_model_size_and_known_categories(folder: Path) -> None:
    train_folder(settings(folder, data={"max_size": 60}), folder / "first")
    data = {"dir": str(folder / "data"), "hold_out": 0.0}
    lines: list[str] = []
    run = prepare(Settings.from_layers({"start": str(folder / "first"), "data": data}), on_remark=lines.append)
    assert run.start is not None
    assert (run.start.kept, run.start.new, run.validation) == (("block",), (), None)
    assert run.detector.max_size == 60
    assert same_weights(run.detector.model, load_model(folder / "first").model)
    assert len(lines) == 1
    assert "there is no val split, so there are no metrics" in lines[0]


def test_what_was_left_out_is_said_even_where_nothing_can_be_learnt(folder: Path) -> None:
    file = folder / "data" / "labels.json"
    truth = json.loads(file.read_text())
    del truth["annotations"][1:]
    truth["images"].append({"id": 9, "file_name": "9.png", "width": 64, "height": 48})
    file.write_text(json.dumps(truth))
    lines: list[str] = []
    for share in (0.25, 0.75):  # the only object is in one part or the other
        with pytest.raises(DataError, match="has an object to find; hold out"):
            prepare(settings(folder, data={"hold_out": share}), skip_bad=True, on_remark=lines.append)
    assert len([line for line in lines if line.startswith("skipped: ")]) == 2


def test_settings_without_a_folder_are_refused() -> None:
    with pytest.raises(ConfigError, match="data: dir is missing; name the folder"):
        prepare(Settings.from_layers())
