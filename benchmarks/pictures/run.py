"""A run: the detector of digits that `make demo` trains, what it was before, and where it looks in test scenes."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from deform_attn.detr.checkpoints import starting
from deform_attn.detr.config.detector import ModelConfig, TrainConfig
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.demo import CHECKPOINT
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.prediction.attended import attend
from deform_attn.explore import Detection, Scene

THRESHOLD = 0.4  # of the score of detections that are shown


@dataclass(frozen=True)
class Run:
    """The folder that a demo wrote to."""

    folder: Path

    def trained(self) -> Detector:
        """Return the detector at the end of the training."""
        return starting.load(self.folder / CHECKPOINT)

    def untrained(self) -> Detector:
        """Return the detector as the demo made it, before the first step."""
        trained = self.trained()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(TrainConfig().seed)
            model = build_model(ModelConfig(len(trained.categories)))
        return Detector(model, trained.categories, max_size=trained.max_size)


def write_scene(index: int, path: Path) -> Path:
    """Write a test scene of digits as a picture, and return its path."""
    from PIL import Image

    pixels = DigitScenes("test", index + 1)[index].image.mul(255).round().byte().permute(1, 2, 0)  # [H, W, 3]
    Image.fromarray(pixels.numpy()).save(path)
    return path


def look(detector: Detector, index: int) -> Scene:
    """Return what `detector` finds in a test scene and where each of its layers looks."""
    with tempfile.TemporaryDirectory() as folder:
        seen = attend(detector, write_scene(index, Path(folder) / "scene.png"), threshold=THRESHOLD)
    columns = (seen.queries, seen.found.boxes, seen.found.labels, seen.found.scores)
    detections = [
        Detection(query, tuple(box), detector.categories[label].name, score)
        for query, box, label, score in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return Scene(seen.picture, seen.records, detections, frame=seen.frame)
