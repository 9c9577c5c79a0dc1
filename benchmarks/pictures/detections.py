"""Detections: what the demo's detector finds in test scenes, compared with what is there."""

from pathlib import Path

from benchmarks.pictures.files import save_picture
from benchmarks.pictures.run import THRESHOLD, Run
from deform_attn.detr.data.batch import collate
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.drawing.pictures import draw_detections
from deform_attn.detr.model.detections import Detections

SCENES = (0, 7)


def draw(run: Run, path: Path) -> Path:
    """Draw the scenes with found and missed digits, and return `path`."""
    from PIL import Image

    detector, data = run.trained(), DigitScenes("test", max(SCENES) + 1)
    samples = [data[i] for i in SCENES]
    found = detector.model.detect(collate(samples))
    images, truths = [sample.image for sample in samples], [Detections.of_sample(sample) for sample in samples]
    draw_detections(images, found, detector.categories, path, truths=truths, min_score=THRESHOLD)
    return save_picture(Image.open(path), path)
