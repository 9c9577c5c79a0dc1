"""Pictures: detections drawn on their scenes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from deform_attn.detr.boxes import iou
from deform_attn.detr.data.base import Category
from deform_attn.detr.drawing.captions import Rectangle
from deform_attn.detr.drawing.contact_sheet import PANEL, Entry, contact_sheet
from deform_attn.detr.drawing.marks import Mark, category_colour, draw_marks
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import atomic_path
from deform_attn.detr.model.detections import Detections

if TYPE_CHECKING:
    from PIL.Image import Image

# As the colours of categories.
_RIGHT, _WRONG, _TRUTH = "#4cc3ff", "#ffa033", "#ffffff"
_LINE, _TEXT = 3, 14  # pixels, of lines and of letters


def draw_detections(
    images: Sequence[Tensor],
    detections: Sequence[Detections],
    categories: Sequence[Category],
    path: str | os.PathLike[str],
    *,
    truths: Sequence[Detections] | None = None,
    min_score: float = 0.4,
    sizes: Sequence[tuple[int, int]] | None = None,
    show_scores: bool = True,
) -> None:
    """Write a grid of pictures with what was detected in them, each box with its category and score.

    With `truths` the colour tells right (IoU at least 0.5 with a box of that category which no better detection has
    found) from wrong, boxes to be found are dashed, and those missed are named; without, each category has a colour.

    Args:
        images: RGB pictures `[3, H, W]` in [0, 1], of any sizes, at least one.
        detections: what was found in each picture.
        categories: the classes in order of their labels.
        path: the file to write; its suffix chooses the format.
        truths: what is to be found in each picture, see `Detections.of_sample`.
        min_score: detections with a smaller score are left out.
        sizes: (H, W) of the frame that the boxes of each picture refer to. Default: the picture's own.
        show_scores: whether boxes have scores; annotated boxes have none.
    """
    if not images:
        raise ValueError("images: expected at least one image, got none")
    shown = [found.above(min_score) for found in detections]
    sizes = [(image.shape[1], image.shape[2]) for image in images] if sizes is None else sizes
    # With one category its name tells nothing.
    names = [f"{' '.join(category.name.split())} " if len(categories) > 1 else "" for category in categories]
    tallest = max(height / width for height, width in sizes)
    panels, titles = [], []
    for i, (image, (height, width), found) in enumerate(zip(images, sizes, shown, strict=True)):
        scale = PANEL * min(1 / width, tallest / height)
        labels, boxes = found.labels.tolist(), _rectangles(found.boxes * scale)
        colours = [category_colour(label) for label in labels]
        scores = [f"{score:.2f}" if show_scores else "" for score in found.scores.tolist()]
        texts = [f"{names[label]}{score}".strip() or None for label, score in zip(labels, scores, strict=True)]
        missed: list[Mark] = []
        if truths is not None:
            right, is_found = _judge(found, truths[i])
            colours = [_RIGHT if ok else _WRONG for ok in right]
            to_find = zip(_rectangles(truths[i].boxes * scale), truths[i].labels.tolist(), is_found, strict=True)
            missed = [
                Mark(box, _TRUTH, None if ok else f"{names[label]}missed", dashed=True) for box, label, ok in to_find
            ]
            titles.append(f"{sum(is_found)} of {len(is_found)} found, {right.count(False)} wrong")
        marks = missed + [Mark(*one) for one in zip(boxes, colours, texts, strict=True)]
        panel = _panel(image, round(width * scale), round(height * scale))
        draw_marks(panel, marks, line=_LINE, size=_TEXT)
        panels.append(panel)
    if truths is None:
        seen = sorted({label for found in shown for label in found.labels.tolist()})
        legend = [Entry(category_colour(label), categories[label].name) for label in seen]
    else:
        legend = [Entry(_RIGHT, "right"), Entry(_WRONG, "wrong"), Entry(_TRUTH, "to be found", dashed=True)]
    sheet = contact_sheet(panels, titles, legend)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format=None if Path(path).suffix else "PNG")


def _panel(image: Tensor, width: int, height: int) -> "Image":
    """Return `image [3, H, W]` as a picture of this size."""
    with detr_extra():
        from PIL import Image

    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)  # [H, W, 3]
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BILINEAR)


def _judge(found: Detections, truth: Detections) -> tuple[list[bool], list[bool]]:
    """Return which detections are right, and which boxes of the truth were found; the best detections choose first."""
    right, is_found = [False] * len(found.labels), [False] * len(truth.labels)
    overlaps = iou(found.boxes[:, None].float(), truth.boxes[None].float())  # [k, n]
    overlaps = overlaps.where(found.labels[:, None] == truth.labels, 0.0)
    for i in found.scores.argsort(descending=True).tolist():
        free = [(overlap, j) for j, overlap in enumerate(overlaps[i].tolist()) if overlap >= 0.5 and not is_found[j]]
        if free:
            right[i] = is_found[max(free)[1]] = True
    return right, is_found


def _rectangles(boxes: Tensor) -> list[Rectangle]:
    """Return corner-form `boxes [k, 4]` as tuples."""
    return [(left, top, right, bottom) for left, top, right, bottom in boxes.tolist()]
