"""The engine: training, its resumption, and evaluation."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deform_attn.detr import checkpoint as checkpoints
from deform_attn.detr.checkpoint import CheckpointError, Detector, TrainingState
from deform_attn.detr.config import TrainConfig
from deform_attn.detr.criterion import Criterion
from deform_attn.detr.data.base import DetectionData
from deform_attn.detr.data.batch import collate
from deform_attn.detr.evaluation import evaluate
from deform_attn.detr.model import DeformableDetr, evaluating
from deform_attn.detr.workers import add_gradients, replicate, share, worker_threads


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

    The order of the samples and all other chance follow from `config.seed` and `epoch` (from 0) alone. Each of
    `config.workers` threads takes a part of every batch; on a GPU, and with dropout, whose random numbers threads would
    draw in any order, there is only one.

    Returns:
        The mean of `loss` and of its terms over the epoch.

    Raises:
        ValueError: the training has diverged.
    """
    device = model.mean.device
    criterion = Criterion(config.loss)
    workers = config.workers if device.type == "cpu" and model.config.transformer.dropout == 0 else 1
    steps = math.ceil(len(data) / config.batch_size)
    sums = torch.zeros(4)
    data.set_epoch(epoch)
    model.train()
    replicas = replicate(model, workers)

    def loss(replica: DeformableDetr, part: Sequence[int]) -> Tensor:
        batch = collate([data[i] for i in part])
        losses = criterion(replica(batch.images.to(device), batch.padding_mask.to(device)), batch.samples)
        return torch.stack([losses.total, losses.classes, losses.boxes, losses.giou])

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), worker_threads(workers) as executor:
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(data)).tolist()
        for step in range(steps):
            for group in optimizer.param_groups:
                rate = learning_rate(epoch * steps + step, config.epochs * steps, config)
                group["lr"] = rate * group["lr_factor"]
            optimizer.zero_grad()
            batch = order[step * config.batch_size : (step + 1) * config.batch_size]
            sums += add_gradients(executor, replicas, share(batch, workers), loss).cpu()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm, foreach=True)
            optimizer.step()
            if on_step is not None:
                on_step(Progress(epoch + 1, config.epochs, step + 1, steps, float(sums[0]) / (step + 1)))
    return dict(zip(("loss", "class", "box", "giou"), (sums / steps).tolist(), strict=True))


def evaluate_model(
    model: DeformableDetr, data: DetectionData, batch_size: int = 16, workers: int = 1
) -> dict[str, float]:
    """Return COCO's metrics of `model` on `data`, computed by so many threads."""

    def detect(start: int) -> list[dict[str, Any]]:
        batch = collate([data[i] for i in range(start, min(start + batch_size, len(data)))])
        found = zip(batch.samples, model.detect(batch), strict=True)
        return [one for sample, detections in found for one in detections.to_coco(sample.image_id, data.categories)]

    with evaluating(model), worker_threads(workers) as executor:
        found = [one for batch in executor.map(detect, range(0, len(data), batch_size)) for one in batch]
    return evaluate(data.ground_truth(), found)


def fit(
    detector: Detector,
    data: DetectionData,
    config: TrainConfig,
    path: str | os.PathLike[str],
    *,
    validation: DetectionData | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> History:
    """Train `detector.model` and write a checkpoint to the directory `path` after every epoch.

    Stopped at any moment (Ctrl-C included) it leaves the checkpoint of the last whole epoch. Resumed from there it goes
    on as if it had never been stopped, to the last bit on the same machine.

    Args:
        detector: the model to train, in place, and what its checkpoints say beside it.
        data: what to train on.
        config: how to train.
        path: the checkpoint's directory.
        validation: evaluated after every epoch, if given.
        resume: go on from the checkpoint at `path`; if there is none yet, begin.
        on_step: called after every step.

    Returns:
        For each epoch its number (from 1), losses, seconds and, with `validation`, its metrics.

    Raises:
        CheckpointError: the checkpoint to resume from is damaged, or from another model or another config; or at `path`
            there is something else.
        ValueError: the training has diverged.
    """
    checkpoints.check_target(path)  # rather than after an epoch
    model = detector.model
    optimizer, names = build_optimizer(model, config)
    history: History = []
    if resume and checkpoints.exists(path):
        history = _restore(path, model, optimizer, names, config)
    for epoch in range(len(history), config.epochs):
        start = time.perf_counter()
        record = {"epoch": float(epoch + 1), **train_one_epoch(model, optimizer, data, config, epoch, on_step)}
        record["seconds"] = time.perf_counter() - start
        if validation is not None:
            record |= evaluate_model(model, validation, config.batch_size, config.workers)
        history.append(record)
        state = TrainingState(config, history, checkpoints.named_state(optimizer, names))
        checkpoints.save(path, detector, state)
    return history


def _restore(
    path: str | os.PathLike[str],
    model: DeformableDetr,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    config: TrainConfig,
) -> History:
    """Put model and optimiser where the checkpoint at `path` left them, and return the history up to there."""
    saved, training = checkpoints.load_model(path), checkpoints.load_training(path)
    pairs = {"model": (saved.model.config, model.config), "training": (training.config, config)}
    for what, (before, now) in pairs.items():
        for name, value in now.to_dict().items():
            if (stored := before.to_dict()[name]) != value:
                raise CheckpointError(f"{path}: was begun with {what} setting {name} {stored!r}, not {value!r}")
    model.load_state_dict(saved.model.state_dict())
    checkpoints.load_named_state(optimizer, names, training.optimizer)
    return training.history
