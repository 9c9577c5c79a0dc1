"""Resumption: what a checkpoint keeps of a training, and how the training goes on from there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from deform_attn.detr.checkpoints import checkpoint as checkpoints
from deform_attn.detr.checkpoints.training_state import TrainingState, load_trained, load_training
from deform_attn.detr.data.base import listed
from deform_attn.detr.errors import CheckpointError, TrainingStopped, printable
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.learner import Learner

_FREE = ("save_every", "workers")
"""Settings that may change when a training is resumed: its results do not depend on them."""


@contextmanager
def stoppable(path: str | os.PathLike[str], epochs: int, run: str | None = None) -> Iterator[None]:
    """Around a part of a training of `epochs` epochs: say on Ctrl-C what the checkpoint at `path` keeps of it.

    Args:
        path: of the checkpoint.
        epochs: of the training.
        run: of the training; a checkpoint of another keeps nothing. None: the one at `path` is known to be its own.

    Raises:
        TrainingStopped: Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        kept, steps = _kept(path, run)
        raise TrainingStopped(path, kept, epochs, steps) from stop


def _kept(path: str | os.PathLike[str], run: str | None) -> tuple[int, int]:
    """Return how many epochs, and steps of the next one, the checkpoint at `path` holds of `run`.

    It is read rather than counted, because Ctrl-C may come while it is written.
    """
    if not checkpoints.exists(path):
        return 0, 0
    try:
        saved = load_training(path, optimizer=False)
    except CheckpointError:  # of a detector without a training: an earlier one, still to be replaced
        return 0, 0
    return (len(saved.history), saved.position.step) if run in (None, saved.run) else (0, 0)


def restore(path: str | os.PathLike[str], detector: Detector, learner: Learner, pictures: int) -> TrainingState:
    """Put model and optimiser where the checkpoint at `path` left them.

    Args:
        path: of the checkpoint.
        detector: the one that `learner` trains.
        learner: as it was made.
        pictures: how many there are to train on.

    Returns:
        Where the training stands.

    Raises:
        CheckpointError: the checkpoint is damaged, or from another model, config, data or number of processes.
    """
    saved, training = load_trained(path), load_training(path)
    then = _settings(saved, training.config.to_dict(), training.pictures, training.processes)
    now = _settings(detector, learner.config.to_dict(), pictures, learner.processes.count)
    if different := list(_differences("", then, now)):
        raise CheckpointError(
            f"{path}: this training began with {listed(different)}; resume it with these, or start a new training from "
            "its weights (--from) in another folder (--out)"
        )
    detector.model.load_state_dict(saved.model.state_dict())
    learner.load_state(training.optimizer, training.scaler)
    return replace(training, config=learner.config)


def _settings(detector: Detector, config: dict[str, Any], pictures: int, processes: int) -> dict[str, Any]:
    """Return all that must stay when a training is resumed, by what messages call it."""
    return {
        "model setting ": detector.model.config.to_dict(),
        "training setting ": {name: value for name, value in config.items() if name not in _FREE},
        "images": pictures,
        "category ": {str(i): f"{one.name!r} (id {one.id})" for i, one in enumerate(detector.categories, 1)},
        "max_size": detector.max_size,
        "processes": processes,
    }


def _differences(name: str, then: Any, now: Any) -> Iterator[str]:
    """Yield what differs between two settings, or within two tables of them."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*then, *now)):
            inner = f"{name}{key}" if not name or name.endswith(" ") else f"{name}.{key}"
            yield from _differences(inner, then.get(key), now.get(key))
    elif then != now:
        yield f"{name} {printable(then, 80)} (now {printable(now, 80)})"
