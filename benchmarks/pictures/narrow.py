"""A narrow picture of detections: pictures below each other, so that a phone shows their captions in a size to read."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.pictures.files import save_picture
from deform_attn.detr.data.base import Category
from deform_attn.detr.drawing.contact_sheet import PANEL
from deform_attn.detr.drawing.pictures import draw_detections
from deform_attn.detr.model.detections import Detections

_MARGIN = 12  # pixels at the sides


def draw_narrow(
    images: Sequence[Tensor],
    detections: Sequence[Detections],
    truths: Sequence[Detections],
    categories: Sequence[Category],
    path: Path,
    *,
    min_score: float,
) -> Path:
    """Write a sheet for each of the `images [3, H, W]`, one below the other, without empty sides, and return `path`."""
    from PIL import Image

    sheets = []
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.png"
        for image, found, truth in zip(images, detections, truths, strict=True):
            draw_detections([image], [found], categories, sheet, truths=[truth], min_score=min_score)
            with Image.open(sheet) as drawn:
                left = (drawn.width - PANEL) // 2 - _MARGIN
                sheets.append(drawn.crop((left, 0, drawn.width - left, drawn.height)))
    height = max(one.height for one in sheets)
    whole = Image.new("RGB", (sheets[0].width, height * len(sheets)), "white")
    for i, one in enumerate(sheets):
        whole.paste(one, (0, i * height))
    return save_picture(whole, path)
