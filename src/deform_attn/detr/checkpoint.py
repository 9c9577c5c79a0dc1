"""Checkpoints: directories that hold a detector and, to resume, the state of its training.

`model.safetensors` and `config.json` are what detection needs; `training.safetensors` and `training.json` are the
optimiser and the position of a training. No file is a pickle.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deform_attn.detr.config import ModelConfig, TrainConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.model import DeformableDetr, build_model

FORMAT = 1
_FILES = {"model.safetensors", "config.json", "training.safetensors", "training.json"}


class CheckpointError(ValueError):
    """A checkpoint cannot be read: one line that names the file and what is wrong with it."""


@dataclass(frozen=True)
class Detector:
    """A model and what is needed to use it: its categories, and the longer side in pixels to which pictures are scaled.

    `max_size` None leaves pictures as they are.
    """

    model: DeformableDetr
    categories: tuple[Category, ...]
    max_size: int | None = None


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands: its config, one record for each epoch done, and the optimiser's tensors by name."""

    config: TrainConfig
    history: list[dict[str, float]]
    optimizer: dict[str, Tensor]


def save(path: str | os.PathLike[str], detector: Detector, training: TrainingState | None = None) -> None:
    """Write a checkpoint to the directory `path`, in place of the one that is there.

    Everything is first written to `path.new`; then two renames exchange old and new. Killed at any moment, this leaves
    a checkpoint that loads: the new one, or the old one under `path` or `path.old`, where loading looks, too.

    Raises:
        CheckpointError: at `path` there is something else than a checkpoint.
    """
    with detr_extra():
        from safetensors.torch import save_file

    path = check_target(path)
    fresh, old = _sibling(path, "new"), _sibling(path, "old")
    _remove(fresh)
    fresh.mkdir(parents=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.model.state_dict().items()}
    save_file(state, fresh / "model.safetensors")
    config = {
        "format": FORMAT,
        "model": detector.model.config.to_dict(),
        "categories": [{"id": category.id, "name": category.name} for category in detector.categories],
        "max_size": detector.max_size,
    }
    _write_json(fresh / "config.json", config)
    if training is not None:
        save_file({k: v.cpu().contiguous() for k, v in training.optimizer.items()}, fresh / "training.safetensors")
        values = {"config": training.config.to_dict(), "history": without_nan(training.history)}
        _write_json(fresh / "training.json", values)
    if path.exists():
        _remove(old)
        path.rename(old)
    fresh.rename(path)
    _remove(old)


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return `path` without links in it, after checking that `save` may replace what is there.

    Raises:
        CheckpointError: there is something else than a checkpoint, which `save` would delete.
    """
    path = Path(path).resolve()
    for folder in (path, _sibling(path, "new"), _sibling(path, "old")):
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder}: is in the place of a checkpoint's directory; choose another")
        if others := sorted({file.name for file in folder.glob("*")} - _FILES):
            raise CheckpointError(f"{folder}: holds {others[0]}, which a checkpoint has not; choose another directory")
    return path


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a checkpoint at `path`."""
    return (_current(Path(path)) / "config.json").is_file()


def load_model(path: str | os.PathLike[str]) -> Detector:
    """Return the detector of the checkpoint at `path`, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its parts do not fit together.
    """
    folder = _current(Path(path))
    file = folder / "config.json"
    config = _read_json(file)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: format {config.get('format')!r} is unknown to this version, which reads {FORMAT}"
        )
    try:
        model = build_model(ModelConfig.from_dict(config["model"]))
        categories = tuple(Category(int(entry["id"]), str(entry["name"])) for entry in config["categories"])
        max_size = None if config.get("max_size") is None else int(config["max_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: no configuration of a detector ({error!r})") from error
    if len(categories) != model.config.num_classes:
        raise CheckpointError(f"{file}: {len(categories)} categories for {model.config.num_classes} classes")
    _load_state(model, folder / "model.safetensors")
    return Detector(model.eval(), categories, max_size)


def load_training(path: str | os.PathLike[str]) -> TrainingState:
    """Return the state of the training that wrote the checkpoint at `path`.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or holds no training.
    """
    folder = _current(Path(path))
    file = folder / "training.json"
    values = _read_json(file)
    try:
        config, history = TrainConfig.from_dict(values["config"]), _with_nan(values["history"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: no state of a training ({error!r})") from error
    return TrainingState(config, history, _read_tensors(folder / "training.safetensors"))


def _load_state(model: torch.nn.Module, file: Path) -> None:
    """Load the tensors of `file`, all of them and no others, into `model`."""
    found, expected = _read_tensors(file), model.state_dict()
    for name in sorted(found.keys() ^ expected.keys()):
        what = "lacks" if name in expected else "has an unknown"
        raise CheckpointError(f"{file}: {what} tensor {name}; it belongs to another model than its config.json")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, where its config.json asks for {list(expected[name].shape)}"
            raise CheckpointError(f"{file}: tensor {name} is {shapes}")
    model.load_state_dict(found)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    with detr_extra():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file; pass the directory of a checkpoint")
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged ({error})") from error
    return tensors


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}; pass the directory of a checkpoint") from error
    except ValueError as error:  # no JSON, or no text at all
        raise CheckpointError(f"{file}: damaged ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: damaged (expected an object, found {type(values).__name__})")
    return values


def without_nan(records: Sequence[Mapping[str, float]]) -> list[dict[str, float | None]]:
    """Return `records` with None in the place of NaN, which JSON has not."""
    return [{name: None if math.isnan(value) else value for name, value in one.items()} for one in records]


def _with_nan(records: Sequence[Mapping[str, float | None]]) -> list[dict[str, float]]:
    return [{name: math.nan if value is None else value for name, value in one.items()} for one in records]


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name or 'checkpoint'}.{suffix}")


def _current(path: Path) -> Path:
    """Return where the newest whole checkpoint of `path` lies: a kill between two renames leaves it at `path.old`."""
    old = _sibling(path, "old")
    return old if not path.exists() and old.is_dir() else path


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def named_state(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the optimiser's tensors as `{parameter}.{key}`; `names` are its parameters' in its own order."""
    states = optimizer.state_dict()["state"]
    return {f"{names[i]}.{key}": tensor for i, state in states.items() for key, tensor in state.items()}


def load_named_state(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `named_state` returned.

    Raises:
        CheckpointError: the tensors belong to another model or optimiser.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        if owner not in names:
            raise CheckpointError(f"training.safetensors: {name} belongs to no parameter of the model")
        index = names.index(owner)
        if tensor.dim() > 0:
            if tensor.shape != parameters[index].shape:
                raise CheckpointError(f"training.safetensors: {name} has another shape than its parameter")
            # The fused optimiser walks through both in memory order, which channels_last changes.
            tensor = torch.empty_like(parameters[index]).copy_(tensor)
        state.setdefault(index, {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
