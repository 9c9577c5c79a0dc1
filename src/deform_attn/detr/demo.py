"""The demo: a detector of handwritten digits, trained from nothing in minutes on two CPU cores, and its pictures."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from deform_attn.detr.checkpoints.training_state import without_nan
from deform_attn.detr.config.detector import ModelConfig, TrainConfig
from deform_attn.detr.data.batch import collate
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.device import choose_device
from deform_attn.detr.drawing.pictures import draw_detections
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import atomic_path
from deform_attn.detr.model.deformable_detr import DeformableDetr, build_model
from deform_attn.detr.model.detections import Detections
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.engine import History, OnEpoch, OnStep, fit
from deform_attn.detr.training.resumption import stoppable
from deform_attn.detr.training.validation import evaluate_model

CHECKPOINT, SCENE = "checkpoint", "scene.png"
"""Of a demo, in the directory that it writes to."""

_SHOWN_SCENES = 8


@dataclass(frozen=True)
class DemoResult:
    """What a demo found: COCO's `metrics` on the test scenes, the training's `history`, and the `files` it wrote.

    `seconds` is how long this run took, without the epochs of an earlier run that it resumed.
    """

    metrics: dict[str, float]
    history: History
    seconds: float
    files: tuple[Path, ...]


def run_demo(
    out: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    scenes: int = 2000,
    test_scenes: int = 200,
    device: str | torch.device | None = None,
) -> DemoResult:
    """Train a small Deformable DETR on fresh scenes of digits, evaluate it on unseen ones, and draw what it sees.

    Under `out` it writes `checkpoint`, `metrics.json`, `detections.png` and `scene.png`, the first of the test scenes.

    Args:
        out: the directory to write to, made if missing.
        epochs: how many to train. Default: those of the tested recipe.
        seed: of the scenes and of the weights.
        resume: go on where an earlier run into `out` was stopped; if there was none, begin.
        overwrite: begin even if `out` holds an earlier run; the first epoch replaces its checkpoint.
        on_step: called after every training step, see `progress_bar`.
        on_epoch: called after every epoch, see there.
        scenes: training scenes an epoch.
        test_scenes: scenes to evaluate on.
        device: where to train and detect, see `choose_device`. Default: cuda if available, otherwise cpu.

    Raises:
        OccupiedError: there is an earlier run and neither `resume` nor `overwrite`.
        CheckpointError: the checkpoint to resume from is damaged or was begun with other settings.
        ConfigError: there is no such device here.
        TrainingStopped: Ctrl-C; it says which epoch is kept.
    """
    start, out, chosen = time.perf_counter(), Path(out), choose_device(device)
    train = TrainConfig(seed=seed) if epochs is None else TrainConfig(seed=seed, epochs=epochs)
    data, test = DigitScenes("train", scenes, seed=train.seed), DigitScenes("test", test_scenes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(train.seed)
        model = build_model(ModelConfig(len(data.categories)))
    detector = Detector(model, data.categories, max_size=data.size)
    history = fit(
        detector,
        data,
        train,
        out / CHECKPOINT,
        resume=resume,
        overwrite=overwrite,
        on_step=on_step,
        on_epoch=on_epoch,
        device=chosen,
    )
    with stoppable(out / CHECKPOINT, train.epochs):
        metrics = evaluate_model(detector, test, train.batch_size)
        _draw_scenes(model, test, out / "detections.png")
        _write_scene(test, out / SCENE)
        seconds = time.perf_counter() - start
        _write_metrics(out / "metrics.json", metrics, history, seconds)
    files = (CHECKPOINT, "metrics.json", "detections.png", SCENE)
    return DemoResult(metrics, history, seconds, tuple(out / name for name in files))


def _draw_scenes(model: DeformableDetr, data: DigitScenes, path: Path) -> None:
    """Draw what `model` finds in the first scenes of `data`."""
    samples = [data[i] for i in range(min(_SHOWN_SCENES, len(data)))]
    found = model.detect(collate(samples))
    truths = [Detections.of_sample(sample) for sample in samples]
    draw_detections([sample.image for sample in samples], found, data.categories, path, truths=truths)


def _write_scene(data: DigitScenes, path: Path) -> None:
    """Write the first scene of `data` as a picture, for the verbs that take one."""
    with detr_extra():
        from PIL import Image

    pixels = (data[0].image * 255).round().to(torch.uint8).permute(1, 2, 0)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary)


def _write_metrics(path: Path, metrics: dict[str, float], history: History, seconds: float) -> None:
    values = {"metrics": without_nan([metrics])[0], "seconds": seconds, "history": without_nan(history)}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
