"""The engine: the loop of a training, from a checkpoint to the next."""

import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deform_attn.detr.checkpoints import checkpoint as checkpoints
from deform_attn.detr.checkpoints.folder import claimed
from deform_attn.detr.checkpoints.training_state import BEGINNING, Position, TrainingState
from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.data.augmented import Augmented
from deform_attn.detr.data.base import DetectionData, check_categories
from deform_attn.detr.device import choose_device
from deform_attn.detr.errors import ConfigError, DataError, OccupiedError
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.batches import count_steps, epoch_parts
from deform_attn.detr.training.learner import LOSSES, Learner
from deform_attn.detr.training.metrics_log import MetricsLog
from deform_attn.detr.training.optimizer import learning_rate
from deform_attn.detr.training.processes import start_processes
from deform_attn.detr.training.resumption import restore, stoppable
from deform_attn.detr.training.validation import evaluate_model

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step: epoch and step (both from 1), of how many, and the running mean loss.

    `validated` is the AP50 after the epoch before, if there was a validation.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    validated: float | None = None


@dataclass(frozen=True)
class Step:
    """What a step leaves behind: its own `losses` by name, its learning `rate`, and where the epoch then stands."""

    losses: dict[str, float]
    rate: float
    position: Position
    progress: Progress


OnStep = Callable[[Progress], None]
OnEpoch = Callable[[Mapping[str, float], int], None]
History = list[dict[str, float]]


def train_one_epoch(
    learner: Learner,
    data: DetectionData,
    epoch: int,
    position: Position = BEGINNING,
    after_step: Callable[[Step], None] | None = None,
) -> dict[str, float]:
    """Train on every sample of `data` once, or on what is left of them after `position`.

    The order of the samples and all other chance follow from the config's `seed`, from `epoch` (from 0) and from the
    step alone. `after_step` is called on every process; where it fails on one, all stop.

    Returns:
        The mean of `loss` and of its terms over the epoch, its last learning rate `lr` and its `seconds`.

    Raises:
        DivergenceError: the training has diverged.
    """
    config, processes = learner.config, learner.processes
    steps = count_steps(data, config, processes.count)
    start = time.perf_counter() - position.seconds
    sums = torch.tensor(position.sums or [0.0] * len(LOSSES))
    data.set_epoch(epoch)
    learner.model.train()
    with torch.random.fork_rng(devices=[processes.device] if processes.device.type == "cuda" else []):
        parts = epoch_parts(
            data, config, epoch, first_step=position.step, rank=processes.rank, processes=processes.count
        )
        for step in range(position.step, steps):
            rate = learning_rate(epoch * steps + step, config.epochs * steps, config)
            losses = learner.step(parts, rate)
            sums += losses
            progress = Progress(epoch + 1, config.epochs, step + 1, steps, float(sums[0]) / (step + 1))
            here = Position(step + 1, tuple(sums.tolist()), time.perf_counter() - start)
            with processes.together():
                if after_step is not None:
                    after_step(Step(dict(zip(LOSSES, losses.tolist(), strict=True)), rate, here, progress))
    means = dict(zip(LOSSES, (sums / steps).tolist(), strict=True))
    rate = learning_rate((epoch + 1) * steps - 1, config.epochs * steps, config)
    return {**means, "lr": rate, "seconds": time.perf_counter() - start}


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
    on_epoch: OnEpoch | None = None,
    tensorboard: bool = False,
    accelerator: "Accelerator | None" = None,
    device: str | torch.device | None = None,
) -> History:
    """Train `detector.model` and write a checkpoint to the directory `path` after every epoch.

    A training can stop at any moment, also by Ctrl-C. It leaves the checkpoint of the last whole epoch, or of a later
    step with `config.save_every`. A resumed training gives the same bits as one that was never stopped, on the same
    machine. The file `metrics.csv` in the same directory gets one row per epoch.

    With several processes (`accelerate launch`, on CPUs `torchrun`) each calls this with the same arguments. Together
    they train as one process would with their batches joined. Batch normalisation and dropout are the exceptions: each
    process has its own. Only the main process writes and calls back. All must have access to `path`.

    Args:
        detector: the model to train, in place, with its categories and image size, which the checkpoint keeps.
        data: the dataset to train on.
        config: the settings of the training.
        path: the checkpoint's directory; other files in it are not touched.
        validation: a dataset to evaluate after every epoch, in float32.
        resume: continue from the checkpoint at `path`, or begin if there is none.
        overwrite: begin even if there is a checkpoint at `path`; the first one of this training replaces it.
        on_step: called after every step.
        on_epoch: called after every epoch and its evaluation, with its entry of the history and the number of epochs.
        tensorboard: write events for TensorBoard to `path`/tensorboard: every tenth step, and every epoch.
        accelerator: that of the caller's processes, if there is one; its precision must be that of `config`.
        device: where to train. The model moves there and stays. A checkpoint loads on any device. Default: where the
            model is. Each of several processes has its own GPU, if there is one. On a GPU the last bits may vary.

    Returns:
        One entry per epoch: its number (from 1), losses, last learning rate, seconds and, with `validation`, metrics.

    Raises:
        OccupiedError: there is a checkpoint, and neither `resume` nor `overwrite` is given.
        CheckpointError: the checkpoint to resume is damaged, or of another model, config, dataset or number of
            processes. Or `path` holds other files, or another training writes there.
        ConfigError: both `resume` and `overwrite` are given, device, precision and accelerator do not fit, or the
            device does not exist.
        DataError: the categories of `data` or `validation` are not the detector's, or there is no image to train on.
        DivergenceError: the training has diverged.
        ProcessError: another process has failed.
        TrainingStopped: Ctrl-C; the message says what is kept.
        OSError: `path` cannot be created or written to.
    """
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other; choose one")
    chosen = None if device is None else choose_device(device)
    check_categories(data, detector.categories, "the training data", "the detector")
    if len(data) == 0:
        raise DataError("training data: no image to train on; give at least one")
    if validation is not None:
        check_categories(validation, detector.categories, "the validation data", "the detector")
    data = Augmented(data, config.augment, config.seed)
    started = start_processes(detector.model, config.precision, accelerator, chosen)
    with started as processes, ExitStack() as claim:
        with processes.together():
            if processes.is_main:
                claim.enter_context(claimed(Path(path)))
                checkpoints.check_target(path)  # rather than after an epoch
        with processes.together():
            there = checkpoints.exists(path)
            if there and not (resume or overwrite):
                raise OccupiedError(path)
        learner = Learner(detector.model, config, processes)
        run = processes.share(uuid.uuid4().hex)
        state = TrainingState(config, [], {}, len(data), run, processes.count)
        with processes.together():
            if there and resume:
                state = restore(path, detector, learner, len(data))
                if processes.is_main:
                    checkpoints.save_model(path, detector)  # a save that was killed may have left older ones
        with stoppable(path, config.epochs, state.run):
            _run(detector, data, validation, learner, state, path, on_step, on_epoch, tensorboard)
        return state.history


def _run(
    detector: Detector,
    data: DetectionData,
    validation: DetectionData | None,
    learner: Learner,
    begun: TrainingState,
    path: str | os.PathLike[str],
    on_step: OnStep | None,
    on_epoch: OnEpoch | None,
    tensorboard: bool,
) -> None:
    """Train from where `begun` stands, and add to its history."""
    config, processes, history, position = learner.config, learner.processes, begun.history, begun.position
    steps = count_steps(data, config, processes.count)

    def save(here: Position) -> None:
        if processes.is_main:
            log.flush()
            state = replace(begun, optimizer=learner.state(), scaler=learner.scaler_state(), position=here)
            checkpoints.save(path, detector, state)

    def after_step(step: Step) -> None:
        if processes.is_main:
            done = step.position.step
            log.add_step(len(history) * steps + done - 1, step.losses, step.rate)
            if config.save_every and done % config.save_every == 0 and done < steps:
                save(step.position)
            if on_step is not None:
                on_step(replace(step.progress, validated=history[-1].get("AP50") if history else None))

    def close_epoch() -> None:
        if validation is not None and "AP" not in history[-1]:
            history[-1] |= evaluate_model(detector, validation, config.batch_size, processes)
            with processes.together():
                save(BEGINNING)
        with processes.together():
            if processes.is_main:
                log.add_epoch(history)

    done = len(history) * steps + position.step
    with MetricsLog(path, tensorboard=tensorboard and processes.is_main, done=done, steps=steps) as log:
        if history and position.step == 0:
            close_epoch()  # an earlier run may have been stopped between an epoch and the end of its evaluation
        for epoch in range(len(history), config.epochs):
            record = train_one_epoch(learner, data, epoch, position, after_step)
            history.append(processes.share({"epoch": float(epoch + 1), **record}))
            position = BEGINNING
            with processes.together():
                save(position)  # before the evaluation, which may fail or be stopped
            close_epoch()
            with processes.together():
                if processes.is_main and on_epoch is not None:
                    on_epoch(history[-1], config.epochs)
