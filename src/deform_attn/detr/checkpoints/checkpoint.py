"""Checkpoints: directories that hold a detector and, to resume, the state of its training.

`model.safetensors` and `config.json` are what detection needs; `training.safetensors` and `training.json` are the
optimiser and the position of a training. No file is a pickle. What transformers and the authors of Deformable DETR
write is loaded, too (see `exchange`).
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deform_attn.detr.checkpoints.exchange import load_original, load_transformers
from deform_attn.detr.checkpoints.folder import FILES, METRICS_FILE, locate, prepare, replace_files
from deform_attn.detr.config.detector import ModelConfig, TrainConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import json_bytes, read_json, read_tensors
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector

FORMAT = 1


@dataclass(frozen=True)
class Position:
    """How far an epoch has come: `step` steps are done, in `seconds`, and the sums of their losses are `sums`."""

    step: int = 0
    sums: tuple[float, ...] = ()
    seconds: float = 0.0


BEGINNING = Position()
"""Of an epoch."""


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands: its config, one record for each epoch done, and the optimiser's tensors by name.

    Each record has `epoch` (from 1), `loss` and `seconds` at least; `pictures` is how many the training has. `run`
    tells the training from others, `processes` is how many share it, `position` where it stands in the epoch after
    those done, and `scaler` the state of float16's gradient scaler.
    """

    config: TrainConfig
    history: list[dict[str, float]]
    optimizer: dict[str, Tensor]
    pictures: int
    run: str = ""
    processes: int = 1
    position: Position = BEGINNING
    scaler: dict[str, float] = field(default_factory=dict)


def save(path: str | os.PathLike[str], detector: Detector, training: TrainingState | None = None) -> None:
    """Write a checkpoint to the directory `path`, in place of the one that is there; other files there stay.

    Killed at any moment, this leaves a checkpoint that loads: the old one or the new one.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    with detr_extra():
        from safetensors.torch import save as serialise

    config = {
        "format": FORMAT,
        "model": detector.model.config.to_dict(),
        "categories": [{"id": category.id, "name": category.name} for category in detector.categories],
        "max_size": detector.max_size,
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.model.state_dict().items()}
    files = {"config.json": json_bytes(config), "model.safetensors": serialise(state)}
    if training is not None:
        values = {name: getattr(training, name) for name in ("pictures", "run", "processes", "scaler")}
        values |= {"config": training.config.to_dict(), "position": asdict(training.position)}
        values["history"] = without_nan(training.history)
        files["training.json"] = json_bytes(values)
        files["training.safetensors"] = serialise({k: v.cpu().contiguous() for k, v in training.optimizer.items()})
    replace_files(Path(path), files)


def check_target(path: str | os.PathLike[str]) -> None:
    """Make the directory `path` if it is missing, and check that `save` may write there.

    Raises:
        CheckpointError: at `path` there is no directory, or it holds files of another program, which `save` replaces.
        OSError: the directory cannot be made or written to.
    """
    folder = Path(path)
    prepare(folder)
    file = locate(folder, "config.json")
    found = [name for name in (*FILES, METRICS_FILE) if (folder / name).exists()]
    if file.is_file() and not read_json(file).keys() >= {"format", "model", "categories"}:
        raise CheckpointError(f"{file}: is not a detector's and would be replaced; choose another directory")
    if found and not file.is_file():
        raise CheckpointError(f"{folder / found[0]}: belongs to no checkpoint and would be replaced; choose another")


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a checkpoint at `path`."""
    return locate(Path(path), "config.json").is_file()


def load_model(path: str | os.PathLike[str]) -> Detector:
    """Return the detector of the checkpoint at `path`, on the CPU and in evaluation mode.

    `path` is a directory of ours or of transformers, or a file of the authors' repository (`load_transformers`,
    `load_original`).

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its parts do not fit together.
        ConfigError: one of another project has an option that a detector does not have.
    """
    if Path(path).is_file():
        return load_original(path)
    file = locate(Path(path), "config.json")
    config = read_json(file)
    if "model_type" in config and "format" not in config:
        return load_transformers(path)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: format {config.get('format')!r} is unknown to this version, which reads {FORMAT}"
        )
    try:
        settings = ModelConfig.from_dict(config["model"])
        categories = tuple(Category(int(entry["id"]), str(entry["name"])) for entry in config["categories"])
        max_size = config.get("max_size")
        if max_size is not None and (not isinstance(max_size, int) or max_size < 1):
            raise ValueError(f"max_size: expected a number of pixels, at least 1, or null, got {max_size!r}")
        if len(categories) != settings.num_classes:
            raise ValueError(f"{len(categories)} categories for {settings.num_classes} classes")
        model = build_model(settings)  # RuntimeError: larger than the memory
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{file}: no configuration of a detector ({error!r})") from error
    _load_state(model, locate(Path(path), "model.safetensors"))
    return Detector(model.eval(), categories, max_size)


def load_training(path: str | os.PathLike[str], *, optimizer: bool = True) -> TrainingState:
    """Return the state of the training that wrote the checkpoint at `path`; its optimiser's tensors only if wanted.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or holds no training.
    """
    file = locate(Path(path), "training.json")
    values = read_json(file)
    try:
        config, pictures = TrainConfig.from_dict(values["config"]), int(values["pictures"])
        history = _checked_history(values["history"], config.epochs)
        # Without these it is the checkpoint of whole epochs in one process.
        run, processes = str(values.get("run", "")), int(values.get("processes", 1))
        position = _checked_position(values.get("position", asdict(BEGINNING)))
        scaler = {str(name): float(value) for name, value in values.get("scaler", {}).items()}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: no state of a training ({error!r})") from error
    tensors = read_tensors(locate(Path(path), "training.safetensors")) if optimizer else {}
    return TrainingState(config, history, tensors, pictures, run, processes, position, scaler)


def _load_state(model: torch.nn.Module, file: Path) -> None:
    """Load the tensors of `file`, all of them and no others, into `model`."""
    found, expected = read_tensors(file), model.state_dict()
    for name in sorted(found.keys() ^ expected.keys()):
        what = "lacks" if name in expected else "has an unknown"
        raise CheckpointError(f"{file}: {what} tensor {name}; it belongs to another model than its config.json")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, where its config.json asks for {list(expected[name].shape)}"
            raise CheckpointError(f"{file}: tensor {name} is {shapes}")
    model.load_state_dict(found)


def without_nan(records: Sequence[Mapping[str, float]]) -> list[dict[str, float | None]]:
    """Return `records` with None in the place of NaN, which JSON has not."""
    return [{name: None if math.isnan(value) else value for name, value in one.items()} for one in records]


def _checked_history(records: Sequence[Mapping[str, float | None]], epochs: int) -> list[dict[str, float]]:
    """Return `records` with NaN in the place of None; ValueError naming the epoch whose record is not one."""
    history = [{name: math.nan if value is None else value for name, value in one.items()} for one in records]
    for i, one in enumerate(history):
        numbers = all(isinstance(value, int | float) for value in one.values())
        if not numbers or not one.keys() >= {"epoch", "loss", "seconds"} or one["epoch"] != i + 1 or i >= epochs:
            raise ValueError(f"history: no record of epoch {i + 1} of {epochs} in {one!r:.80}")
    return history


def _checked_position(values: Mapping[str, Any]) -> Position:
    """Return the position that `values` describe; ValueError if they describe none."""
    position = Position(int(values["step"]), tuple(map(float, values["sums"])), float(values["seconds"]))
    if position.step < 0 or not all(map(math.isfinite, (*position.sums, position.seconds))):
        raise ValueError(f"position: no place in an epoch in {values!r:.80}")
    return position
