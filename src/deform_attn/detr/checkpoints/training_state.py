"""The state of a training: one file from which it is resumed.

It has the tensors of model and optimiser, and in its header, as JSON, the settings, the history and the position.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from deform_attn.detr.checkpoints.folder import FORMER, TRAINING, check_finished
from deform_attn.detr.checkpoints.parts import assemble, settings_of, tensors_of
from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import read_metadata, read_tensors
from deform_attn.detr.model.detector import Detector

FORMAT = 2
"""The first one had a part of the state in a second file."""

_HEADER, _MODEL, _OPTIMIZER = "deform_attn", "model.", "optimizer."


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


def training_bytes(detector: Detector, training: TrainingState | None) -> bytes:
    """Return the content of the file; without `training`, one that keeps the detector alone."""
    with detr_extra():
        from safetensors.torch import save as serialise

    header = {"format": FORMAT, "version": version("deform-attn"), "detector": settings_of(detector)}
    tensors = {_MODEL + name: tensor for name, tensor in tensors_of(detector).items()}
    if training is not None:
        values = {name: getattr(training, name) for name in ("pictures", "run", "processes", "scaler")}
        values |= {"config": training.config.to_dict(), "position": asdict(training.position)}
        header["training"] = values | {"history": without_nan(training.history)}
        tensors |= {_OPTIMIZER + name: tensor.cpu().contiguous() for name, tensor in training.optimizer.items()}
    return serialise(tensors, metadata={_HEADER: json.dumps(header, allow_nan=False)})


def is_training(file: Path) -> bool:
    """Return whether the safetensors file `file` holds the state of a training.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    return _HEADER in read_metadata(file)


def load_trained(path: str | os.PathLike[str]) -> Detector:
    """Return the detector as the training at `path` last kept it, on the CPU and in evaluation mode.

    `load_model` returns that, too, unless a save was killed before it came to the model's own files.

    Raises:
        CheckpointError: as for `load_training`.
    """
    file = Path(path) / TRAINING
    return assemble(_header(Path(path)).get("detector", {}), file, file, _MODEL)


def load_training(path: str | os.PathLike[str], *, optimizer: bool = True) -> TrainingState:
    """Return the state of the training that wrote the checkpoint at `path`; its optimiser's tensors only if wanted.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or holds no training.
    """
    file = Path(path) / TRAINING
    header = _header(Path(path))
    try:
        values = header["training"]
        config, pictures = TrainConfig.from_dict(values["config"]), int(values["pictures"])
        history = _checked_history(values["history"], config.epochs)
        run, processes = str(values["run"]), int(values["processes"])
        position = _checked_position(values["position"])
        scaler = {str(name): float(value) for name, value in values["scaler"].items()}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(_damaged(file, error)) from error
    tensors = read_tensors(file, _OPTIMIZER) if optimizer else {}
    return TrainingState(config, history, tensors, pictures, run, processes, position, scaler)


def _damaged(file: Path, error: Exception) -> str:
    """Return what is said of a file whose header is not that of a training."""
    return f"{file}: not the state of a training, or damaged ({error!r}); start a new one from the weights (--from)"


def _header(folder: Path) -> dict[str, Any]:
    """Return what the header of the state of a training in `folder` says."""
    check_finished(folder)
    file = folder / TRAINING
    text = read_metadata(file).get(_HEADER)
    if text is None and (folder / FORMER).exists():
        raise CheckpointError(
            f"{file}: was written by an earlier version of deform-attn, format 1; this version reads format "
            f"{FORMAT}; resume with that version, or start from its weights (--from) in another directory"
        )
    try:
        header: dict[str, Any] = json.loads(text or "{}")
        known = header["format"] == FORMAT
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(_damaged(file, error)) from error
    if not known:
        raise CheckpointError(
            f"{file}: was written by deform-attn {header.get('version')}, format {header['format']!r}; this version "
            f"reads format {FORMAT}; resume with that version"
        )
    return header


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
