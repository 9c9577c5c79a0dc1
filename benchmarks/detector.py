"""The compact detector as a whole: seconds a picture in training and inference, and where they go.

Pictures are scenes of digits saved as JPEG with a COCO file, so that reading them is part of it.
"""

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Bystanders
from deform_attn.detr.config.detector import ModelConfig, TrainConfig
from deform_attn.detr.data.batch import Batch, collate
from deform_attn.detr.data.coco import CocoFolder
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.training.criterion import Criterion
from deform_attn.detr.training.optimizer import build_optimizer

SIDES = (160, 320, 640)
PICTURES = 24
BATCH = 4
WARM_UP = 2
JPEG_QUALITY = 90

# What an operator's name says about where time goes; the first that fits. What fits none is "other".
KINDS = {
    "convolutions": ("conv",),
    "deformable attention": ("deform_attn", "deformable"),
    "matrix products": ("mm", "linear", "scaled_dot_product", "_flash_attention"),
    "normalisation": ("norm",),
    "optimiser": ("_foreach", "fused_adam", "Optimizer"),
}

Phase = Callable[[], object]


def whole_detector(seconds: float, say: Callable[[str], None] = print) -> dict[str, object]:
    """Return for each side of `SIDES` the seconds a picture takes, by phase, and the shares of the kinds of operators.

    Half of `seconds` goes to training and half to inference at each side, three rounds at least.
    """
    result: dict[str, object] = {"batch": BATCH}
    for side in SIDES:
        with tempfile.TemporaryDirectory() as folder:
            data = jpeg_scenes(Path(folder), side)
            torch.manual_seed(0)
            stepper = Stepper(data)
            row: dict[str, object] = {}
            for what, phases in (("training", stepper.training()), ("inference", stepper.inference())):
                bystanders = Bystanders()
                times = _timed(phases, seconds / 2)
                row[what] = {
                    "seconds": {name: float(f"{taken / BATCH:.3g}") for name, taken in times.items()},
                    "busy_elsewhere": round(bystanders.lap() or 0.0, 2),
                    "shares": _shares(phases),
                }
                say(f"  {side}, {what}: {1e3 * sum(times.values()) / BATCH:.1f} ms a picture")
            result[str(side)] = row
    return result


def jpeg_scenes(folder: Path, side: int) -> CocoFolder:
    """Write scenes of `side` pixels to `folder` and return them as a data set."""
    from PIL import Image

    scenes = DigitScenes("train", PICTURES, size=side)
    scenes.set_epoch(0)
    truth = scenes.ground_truth()
    for index, image in enumerate(truth["images"]):
        image["file_name"] = f"{index}.jpg"
        pixels = (scenes[index].image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / image["file_name"], quality=JPEG_QUALITY)
    (folder / "scenes.json").write_text(json.dumps(truth))
    return CocoFolder(folder / "scenes.json", folder)


class Stepper:
    """The steps of a training and of an inference, cut into phases that are called in turn."""

    def __init__(self, data: CocoFolder) -> None:
        config = TrainConfig()
        self.model = build_model(ModelConfig(num_classes=10))
        self.optimizer, _ = build_optimizer(self.model, config)
        self.criterion, self.clip_norm = Criterion(config.loss), config.clip_norm
        self.batches = self._batches(data)

    @staticmethod
    def _batches(data: CocoFolder) -> Iterator[Batch]:
        for start in itertools.count(step=BATCH):
            yield collate([data[i % len(data)] for i in range(start, start + BATCH)])

    def _read(self) -> None:
        self.batch = next(self.batches)

    def _forward(self) -> None:
        self.output = self.model(self.batch.images, self.batch.padding_mask)

    def _loss(self) -> None:
        self.losses = self.criterion(self.output, self.batch.samples)

    def _backward(self) -> None:
        self.optimizer.zero_grad()
        self.losses.total.backward()

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm, foreach=True)
        self.optimizer.step()

    def training(self) -> dict[str, Phase]:
        """Return the phases of one step of training."""
        return {
            "reading": self._read,
            "forward": self._forward,
            "matching and loss": self._loss,
            "backward": self._backward,
            "clipping and AdamW": self._update,
        }

    def inference(self) -> dict[str, Phase]:
        """Return the phases of finding what is in a batch."""
        return {"reading": self._read, "model": lambda: self.model.detect(self.batch)}


def _timed(phases: dict[str, Phase], seconds: float) -> dict[str, float]:
    """Return the median seconds of each phase."""
    samples: dict[str, list[float]] = {name: [] for name in phases}
    end = None
    for step in itertools.count():
        if step == WARM_UP:
            end = time.perf_counter() + seconds
        for name, phase in phases.items():
            start = time.perf_counter()
            phase()
            if end is not None:
                samples[name].append(time.perf_counter() - start)
        if end is not None and time.perf_counter() > end and step >= WARM_UP + 2:
            return {name: statistics.median(taken) for name, taken in samples.items()}
    raise AssertionError("the loop above ends by itself")


def _shares(phases: dict[str, Phase], steps: int = 3) -> dict[str, float]:
    """Return what share of the processor's time each kind of operator takes in `steps` steps."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            for phase in phases.values():
                phase()
    sums = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in recorded.key_averages():
        sums[_kind(event.key)] += event.self_cpu_time_total
    whole = sum(sums.values())
    return {kind: round(taken / whole, 3) for kind, taken in sums.items()}


def _kind(operator: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), "other")
