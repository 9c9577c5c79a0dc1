"""Checkpoints: directories that hold a detector and, to resume, the state of its training.

`model.safetensors` and `config.json` are what detection needs; `training.safetensors` and `training.json` are the
optimiser and the position of a training. No file is a pickle. What transformers and the authors of Deformable DETR
write is loaded, too (see `exchange`).
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deform_attn.detr.config import ModelConfig, TrainConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.detector import Detector as Detector
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.exchange import load_original, load_transformers
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import json_bytes, read_json, read_tensors
from deform_attn.detr.folder import FILES, locate, prepare, replace_files
from deform_attn.detr.model import build_model

FORMAT = 1


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands: its config, one record for each epoch done, and the optimiser's tensors by name.

    Each record has `epoch` (from 1), `loss` and `seconds` at least; `pictures` is how many the training has.
    """

    config: TrainConfig
    history: list[dict[str, float]]
    optimizer: dict[str, Tensor]
    pictures: int


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
        values = {"config": training.config.to_dict(), "pictures": training.pictures}
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
    found = [name for name in FILES if (folder / name).exists()]
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


def load_training(path: str | os.PathLike[str]) -> TrainingState:
    """Return the state of the training that wrote the checkpoint at `path`.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or holds no training.
    """
    file = locate(Path(path), "training.json")
    values = read_json(file)
    try:
        config, pictures = TrainConfig.from_dict(values["config"]), int(values["pictures"])
        history = _checked_history(values["history"], config.epochs)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: no state of a training ({error!r})") from error
    return TrainingState(config, history, read_tensors(locate(Path(path), "training.safetensors")), pictures)


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
