"""Pictures: detections drawn on their scenes."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from deform_attn.detr.boxes import iou
from deform_attn.detr.data.base import Category
from deform_attn.detr.drawing.canvas import (
    add_legend,
    category_colour,
    legend_line,
    new_canvas,
    outline,
    save,
    show_picture,
    write_captions,
)
from deform_attn.detr.drawing.captions import Rectangle
from deform_attn.detr.model.detections import Detections

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# As the colours of categories.
_RIGHT, _WRONG, _TRUTH = "#4cc3ff", "#ffa033", "#ffffff"


def draw_detections(
    images: Sequence[Tensor],
    detections: Sequence[Detections],
    categories: Sequence[Category],
    path: str | os.PathLike[str],
    *,
    truths: Sequence[Detections] | None = None,
    min_score: float = 0.4,
    sizes: Sequence[tuple[int, int]] | None = None,
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
    """
    if not images:
        raise ValueError("images: expected at least one picture, got none")
    shown = [found.above(min_score) for found in detections]
    sizes = [(image.shape[1], image.shape[2]) for image in images] if sizes is None else sizes
    palette = {label: category_colour(label) for found in shown for label in found.labels.tolist()}
    figure, panels = new_canvas(len(images), max(height / width for height, width in sizes))
    captions: dict[Axes, list[tuple[Rectangle, str, str]]] = {}
    for i, (panel, image, size, found) in enumerate(zip(panels, images, sizes, shown, strict=True)):
        show_picture(panel, image, size)
        labels, boxes = found.labels.tolist(), _rectangles(found.boxes)
        # With one category its name tells nothing.
        names = [f"{category.name} " if len(categories) > 1 else "" for category in categories]
        texts = [f"{names[label]}{score:.2f}" for label, score in zip(labels, found.scores.tolist(), strict=True)]
        colours = [palette[label] for label in labels]
        missed: list[tuple[Rectangle, str, str]] = []
        if truths is not None:
            right, is_found = _judge(found, truths[i])
            colours = [_RIGHT if ok else _WRONG for ok in right]
            to_find = zip(_rectangles(truths[i].boxes), truths[i].labels.tolist(), is_found, strict=True)
            missed = [(box, f"{names[label]}missed", _TRUTH) for box, label, ok in to_find if not ok]
            panel.set_title(f"{sum(is_found)} of {len(is_found)} found, {right.count(False)} wrong", fontsize=8)
        captions[panel] = list(zip(boxes, texts, colours, strict=True)) + missed
        for box, colour in zip(boxes, colours, strict=True):
            outline(panel, box, colour)
        for box in [] if truths is None else _rectangles(truths[i].boxes):
            outline(panel, box, _TRUTH, dashed=True)

    if truths is None:
        add_legend(figure, [legend_line(palette[label], categories[label].name) for label in sorted(palette)])
    else:
        truth = legend_line(_TRUTH, "to be found", dashed=True)
        add_legend(figure, [legend_line(_RIGHT, "right"), legend_line(_WRONG, "wrong"), truth])
    write_captions(figure, captions)
    save(figure, path)


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
