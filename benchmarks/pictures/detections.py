"""Detections: what the demo's detector finds in a test scene, compared with what is there."""

from pathlib import Path

from benchmarks.pictures.narrow import draw_narrow
from benchmarks.pictures.run import THRESHOLD, Run
from deform_attn.detr.data.batch import collate
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.model.detections import Detections

SCENE = 4


def draw(run: Run, path: Path) -> Path:
    """Draw the scene with found and missed digits, and return `path`."""
    detector, sample = run.trained(), DigitScenes("test", SCENE + 1)[SCENE]
    found, truths = detector.model.detect(collate([sample])), [Detections.of_sample(sample)]
    return draw_narrow([sample.image], found, truths, detector.categories, path, min_score=THRESHOLD)
