import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deform_attn.detr.checkpoint import (
    CheckpointError,
    Detector,
    TrainingState,
    exists,
    load_model,
    load_training,
    save,
)
from deform_attn.detr.config import BackboneConfig, ModelConfig, TrainConfig, TransformerConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.model import build_model


def detector(seed: int, width: int = 16) -> Detector:
    torch.manual_seed(seed)
    transformer = TransformerConfig(width=width, num_heads=2, feedforward_dim=24, encoder_layers=1, decoder_layers=1)
    config = ModelConfig(2, backbone=BackboneConfig(channels=(6, 8, 10, 12)), transformer=transformer)
    return Detector(build_model(config), (Category(3, "pine"), Category(8, "äpple")), max_size=320)


def same_weights(first: Detector, second: Detector) -> bool:
    states = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def training(epochs: int) -> TrainingState:
    history = [{"epoch": float(i + 1), "loss": 0.1 * i} for i in range(epochs)]
    return TrainingState(TrainConfig(epochs=5), history, {"a.step": torch.tensor(3.0), "a.exp_avg": torch.rand(2, 3)})


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    before, state = detector(0), training(2)
    save(tmp_path / "runs" / "checkpoint", before, state)
    after = load_model(tmp_path / "runs" / "checkpoint")
    assert same_weights(before, after)
    assert after.model.config == before.model.config
    assert (after.categories, after.max_size) == (before.categories, 320)
    assert not after.model.training
    loaded = load_training(tmp_path / "runs" / "checkpoint")
    assert (loaded.config, loaded.history) == (state.config, state.history)
    assert loaded.optimizer.keys() == state.optimizer.keys()
    assert all(torch.equal(tensor, state.optimizer[name]) for name, tensor in loaded.optimizer.items())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["checkpoint"]


def test_metrics_that_are_not_defined_survive_as_nan(tmp_path: Path) -> None:
    state = TrainingState(TrainConfig(), [{"loss": 1.5, "AP>96": math.nan}], {})
    save(tmp_path / "run", detector(0), state)
    assert "NaN" not in (tmp_path / "run" / "training.json").read_text()
    history = load_training(tmp_path / "run").history
    assert history[0]["loss"] == 1.5
    assert math.isnan(history[0]["AP>96"])


@pytest.mark.parametrize("moment", range(12))
def test_a_save_stopped_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    import safetensors.torch

    path, old, new = tmp_path / "checkpoint", detector(0), detector(1)
    save(path, old, training(1))
    steps = 0

    def stopped(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == moment:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patches:
        patches.setattr(safetensors.torch, "save_file", stopped(safetensors.torch.save_file))
        for name in ("write_text", "rename", "mkdir"):
            patches.setattr(Path, name, stopped(getattr(Path, name)))
        patches.setattr(shutil, "rmtree", stopped(shutil.rmtree))
        interrupted = False
        try:
            save(path, new, training(2))
        except KeyboardInterrupt:
            interrupted = True
    assert interrupted == (1 <= moment <= 8), "the loop reaches every step of a save and goes beyond"
    assert exists(path)
    found = load_model(path)
    is_new = len(load_training(path).history) == 2
    assert same_weights(found, new if is_new else old)
    assert is_new or interrupted
    save(path, new, training(3))
    assert same_weights(load_model(path), new)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("suffix", ["", ".old", ".new"])
def test_what_is_no_checkpoint_is_never_replaced(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "run", detector(0))
    folder = tmp_path / f"run{suffix}"
    folder.mkdir(exist_ok=True)
    (folder / "thesis.txt").write_text("the only copy")
    with pytest.raises(CheckpointError, match=rf"run{suffix}: holds thesis\.txt"):
        save(tmp_path / "run", detector(1))
    assert (folder / "thesis.txt").read_text() == "the only copy"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="file: is in the place"):
        save(tmp_path / "file", detector(1))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_checkpoint_behind_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    save(tmp_path / "run", detector(0))
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    save(tmp_path / "link", detector(1))
    assert same_weights(load_model(tmp_path / "run"), detector(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(text)


def change(name: str, key: str, value: Any) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        values = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(values | {key: value}))

    return apply


def cut(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"config\.json: No such file or directory; pass the directory of a checkpoint"),
        (write("config.json", "{"), r"config\.json: damaged"),
        (write("config.json", "[]"), r"config\.json: damaged \(expected an object, found list\)"),
        (change("config.json", "format", 99), "format 99 is unknown"),
        (change("config.json", "model", {"num_classes": 2, "depth": 1}), "unknown field 'depth'"),
        (change("config.json", "categories", [{"id": 3}]), "no configuration of a detector"),
        (change("config.json", "categories", [{"id": 3, "name": "pine"}]), "1 categories for 2 classes"),
        (change("config.json", "max_size", "big"), "no configuration of a detector .*big"),
        (change("config.json", "model", {"num_classes": 2}), r"model\.safetensors: (lacks|has|tensor)"),
        (write("model.safetensors", "no tensors"), r"model\.safetensors: damaged"),
        (cut("model.safetensors"), r"model\.safetensors: damaged"),
        (lambda path: (path / "model.safetensors").unlink(), r"model\.safetensors: there is no such file"),
        (write("training.json", "{}"), r"training\.json: no state of a training"),
        (cut("training.safetensors"), r"training\.safetensors: damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_file_and_the_reason(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    save(tmp_path / "checkpoint", detector(0), training(1))
    damage(tmp_path / "checkpoint")
    load = load_training if "training" in message else load_model
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path / "checkpoint")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_of_another_size_are_refused_by_name(tmp_path: Path) -> None:
    for name, width in (("narrow", 16), ("wide", 32)):
        save(tmp_path / name, detector(0, width))
    shutil.copy(tmp_path / "narrow" / "model.safetensors", tmp_path / "wide" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor \S+ is \[.*16.*\], where its config.json asks for \[.*32.*\]"):
        load_model(tmp_path / "wide")


def test_a_checkpoint_without_training_still_loads_its_model(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", detector(0))
    assert len(load_model(tmp_path / "checkpoint").categories) == 2
    with pytest.raises(CheckpointError, match=r"training\.json"):
        load_training(tmp_path / "checkpoint")
