"""The engine: training, its resumption, and evaluation."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deform_attn.detr import checkpoint as checkpoints
from deform_attn.detr.checkpoint import Detector, TrainingState
from deform_attn.detr.config import TrainConfig
from deform_attn.detr.criterion import Criterion
from deform_attn.detr.data.augmented import Augmented
from deform_attn.detr.data.base import DetectionData, check_categories
from deform_attn.detr.data.batch import collate
from deform_attn.detr.errors import CheckpointError, ConfigError, OccupiedError, TrainingStopped
from deform_attn.detr.evaluation import evaluate
from deform_attn.detr.model import DeformableDetr, evaluating


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step: epoch and step (both from 1), of how many, and the running mean loss."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


OnStep = Callable[[Progress], None]
History = list[dict[str, float]]


def build_optimizer(model: DeformableDetr, config: TrainConfig) -> tuple[torch.optim.AdamW, list[str]]:
    """Return AdamW and the names of its parameters in its order."""
    groups: dict[float, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        factor = config.backbone_lr_factor if name.startswith("backbone.") else 1.0
        factor = config.offsets_lr_factor if "sampling_offsets" in name else factor
        groups.setdefault(factor, []).append((name, parameter))
    optimizer = torch.optim.AdamW(
        [{"params": [p for _, p in group], "lr_factor": factor} for factor, group in groups.items()],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=True,
    )
    return optimizer, [name for group in groups.values() for name, _ in group]


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of `step` (from 0): a linear warm-up and a cosine down to zero."""
    warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * step / total_steps))


def train_one_epoch(
    model: DeformableDetr,
    optimizer: torch.optim.Optimizer,
    data: DetectionData,
    config: TrainConfig,
    epoch: int,
    on_step: OnStep | None = None,
) -> dict[str, float]:
    """Train on every sample of `data` once.

    The order of the samples and all other chance follow from `config.seed` and `epoch` (from 0) alone.

    Returns:
        The mean of `loss` and of its terms over the epoch.

    Raises:
        DivergenceError: the training has diverged.
    """
    device = model.mean.device
    criterion = Criterion(config.loss)
    steps = math.ceil(len(data) / config.batch_size)
    sums = torch.zeros(4)
    data.set_epoch(epoch)
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(data)).tolist()
        for step in range(steps):
            for group in optimizer.param_groups:
                rate = learning_rate(epoch * steps + step, config.epochs * steps, config)
                group["lr"] = rate * group["lr_factor"]
            batch = collate([data[i] for i in order[step * config.batch_size : (step + 1) * config.batch_size]])
            losses = criterion(model(batch.images.to(device), batch.padding_mask.to(device)), batch.samples)
            optimizer.zero_grad()
            losses.total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm, foreach=True)
            optimizer.step()
            sums += torch.stack([losses.total, losses.classes, losses.boxes, losses.giou]).detach().cpu()
            if on_step is not None:
                on_step(Progress(epoch + 1, config.epochs, step + 1, steps, float(sums[0]) / (step + 1)))
    return dict(zip(("loss", "class", "box", "giou"), (sums / steps).tolist(), strict=True))


def evaluate_model(detector: Detector, data: DetectionData, batch_size: int = 16) -> dict[str, float]:
    """Return COCO's metrics of `detector` on `data`.

    Raises:
        DataError: the categories of `data` are not the detector's.
    """
    check_categories(data, detector.categories, "evaluation data")
    found: list[dict[str, Any]] = []
    with evaluating(detector.model):
        for start in range(0, len(data), batch_size):
            batch = collate([data[i] for i in range(start, min(start + batch_size, len(data)))])
            for sample, detections in zip(batch.samples, detector.model.detect(batch), strict=True):
                found += detections.to_coco(sample.image_id, data.categories)
    return evaluate(data.ground_truth(), found)


def fit(
    detector: Detector,
    data: DetectionData,
    config: TrainConfig,
    path: str | os.PathLike[str],
    *,
    validation: DetectionData | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
) -> History:
    """Train `detector.model` and write a checkpoint to the directory `path` after every epoch.

    Stopped at any moment (Ctrl-C included) it leaves the checkpoint of the last whole epoch. Resumed from there it goes
    on as if it had never been stopped, to the last bit on the same machine.

    Args:
        detector: the model to train, in place, and what its checkpoints say beside it.
        data: what to train on.
        config: how to train.
        path: the checkpoint's directory; other files in it are left alone.
        validation: evaluated after every epoch, if given.
        resume: go on from the checkpoint at `path`; if there is none yet, begin.
        overwrite: begin even if there is a checkpoint at `path`; the first epoch's replaces it.
        on_step: called after every step.

    Returns:
        For each epoch its number (from 1), losses, seconds and, with `validation`, its metrics.

    Raises:
        OccupiedError: there is a checkpoint and neither `resume` nor `overwrite`.
        CheckpointError: the one to resume from is damaged, or from another model, config or data; or at `path` there is
            something else.
        ConfigError: both `resume` and `overwrite`.
        DataError: the categories of `data` or `validation` are not the detector's.
        DivergenceError: the training has diverged.
        TrainingStopped: Ctrl-C; it says which epoch is kept.
        OSError: `path` cannot be made or written to.
    """
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other; choose one")
    check_categories(data, detector.categories, "training data")
    if validation is not None:
        check_categories(validation, detector.categories, "validation data")
    data = Augmented(data, config.augment, config.seed)
    checkpoints.check_target(path)  # rather than after an epoch
    optimizer, names = build_optimizer(detector.model, config)
    history: History = []
    if checkpoints.exists(path):
        if resume:
            history = _restore(path, detector, optimizer, names, config, len(data))
        elif not overwrite:
            raise OccupiedError(path)

    def save() -> None:
        state = TrainingState(config, history, checkpoints.named_state(optimizer, names), len(data))
        checkpoints.save(path, detector, state)

    def validate() -> None:
        if validation is not None and history and "AP" not in history[-1]:
            history[-1] |= evaluate_model(detector, validation, config.batch_size)
            save()

    with stoppable(path, history, config.epochs):
        validate()  # an earlier run may have been stopped between an epoch and the end of its evaluation
        for epoch in range(len(history), config.epochs):
            start = time.perf_counter()
            losses = train_one_epoch(detector.model, optimizer, data, config, epoch, on_step)
            history.append({"epoch": float(epoch + 1), **losses, "seconds": time.perf_counter() - start})
            save()  # before the evaluation, which may fail or be stopped
            validate()
    return history


@contextmanager
def stoppable(path: str | os.PathLike[str], history: History, epochs: int) -> Iterator[None]:
    """Around a part of the training with this `history`: say on Ctrl-C what the checkpoint at `path` keeps of it.

    Raises:
        TrainingStopped: Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise TrainingStopped(path, _kept(path, history), epochs) from stop


def _kept(path: str | os.PathLike[str], history: History) -> int:
    """Return how many epochs of the training with this `history` the checkpoint at `path` holds, 0 if it is another's.

    It is read rather than counted, because Ctrl-C may come while it is written.
    """
    if not history or not checkpoints.exists(path):
        return 0
    try:
        saved = checkpoints.load_training(path).history
    except CheckpointError:  # of a detector without a training: an earlier one, still to be replaced
        return 0
    return len(saved) if saved and saved[0]["seconds"] == history[0]["seconds"] else 0


def _restore(
    path: str | os.PathLike[str],
    detector: Detector,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    config: TrainConfig,
    pictures: int,
) -> History:
    """Put model and optimiser where the checkpoint at `path` left them, and return the history up to there."""
    saved, training = checkpoints.load_model(path), checkpoints.load_training(path)
    pairs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "model setting ": (saved.model.config.to_dict(), detector.model.config.to_dict()),
        "training setting ": (training.config.to_dict(), config.to_dict()),
        "": (
            {"pictures": training.pictures, "categories": saved.categories, "max_size": saved.max_size},
            {"pictures": pictures, "categories": detector.categories, "max_size": detector.max_size},
        ),
    }
    for what, (before, now) in pairs.items():
        for name, value in now.items():
            if before[name] != value:
                raise CheckpointError(
                    f"{path}: was begun with {what}{name} {before[name]!r}, not {value!r}; "
                    "resume it with what it was begun with, or train into another directory"
                )
    detector.model.load_state_dict(saved.model.state_dict())
    checkpoints.load_named_state(optimizer, names, training.optimizer)
    return training.history
