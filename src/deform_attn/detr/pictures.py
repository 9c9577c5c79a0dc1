"""Pictures: detections drawn on their scenes, and where one query looks."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deform_attn.detr.boxes import cxcywh_to_xyxy, iou
from deform_attn.detr.canvas import (
    add_legend,
    category_colour,
    legend_line,
    new_canvas,
    outline,
    save,
    show_picture,
    write_captions,
)
from deform_attn.detr.captions import Rectangle
from deform_attn.detr.data.base import Category
from deform_attn.detr.detections import Detections

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# As the colours of categories.
_RIGHT, _WRONG, _TRUTH = "#4cc3ff", "#ffa033", "#ffffff"
_MARKERS = "osD^v<>p*hXP"  # of the heads, in turn
_POINTS: dict[str, Any] = {"cmap": "YlOrRd", "edgecolors": "black", "linewidths": 0.6, "zorder": 3}
_CROSS: dict[str, Any] = {"marker": "+", "markersize": 13, "markeredgewidth": 2, "color": _RIGHT, "zorder": 4}
_MOST_GRID_LINES = 48  # of a level; a denser grid is only grey
_FARTHEST = 0.25  # beyond the border that sampling points are drawn, as a share of the picture


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


def draw_attention(
    image: Tensor,
    locations: Tensor,
    weights: Tensor,
    reference_point: Tensor | Sequence[float],
    spatial_shapes: Sequence[tuple[int, int]],
    path: str | os.PathLike[str],
    *,
    box: Tensor | Sequence[float] | None = None,
    title: str = "",
    zoom: bool = False,
) -> None:
    """Write where one query looks: a panel a level, with the level's pixels as a grid on the picture.

    A sampling point's shape tells its head, its colour and size its attention weight. Points off the picture are drawn
    beside it, those more than a quarter of the picture away at that distance.

    Args:
        image: RGB `[3, H, W]` in [0, 1].
        locations: `[M, L, P, 2]` (x, y), where [0, 1] spans the picture.
        weights: `[M, L, P]`.
        reference_point: (x, y) in [0, 1], drawn as a cross.
        spatial_shapes: L pairs (H, W).
        path: the file to write; its suffix chooses the format.
        box: the reference box (cx, cy, w, h) in [0, 1], if there is one.
        title: what to write above the panels.
        zoom: show only the part of the picture around the points.
    """
    height, width = image.shape[1:]
    extent = torch.tensor([width, height], dtype=torch.float64)
    locations = locations.detach().cpu().double().clamp(-_FARTHEST, 1 + _FARTHEST)
    weights = weights.detach().cpu().double()
    heads = len(weights)
    reference = torch.as_tensor(reference_point).detach().cpu().double()
    corners = None if box is None else cxcywh_to_xyxy(torch.as_tensor(box).detach().cpu().double())
    seen = torch.cat([locations.view(-1, 2), reference[None], *([] if corners is None else [corners.view(2, 2)])])
    left, top, right, bottom = (_view(seen, zoom=zoom) * extent.repeat(2)).tolist()
    strongest = float(weights.max()) or 1.0

    figure, panels = new_canvas(len(spatial_shapes), (bottom - top) / (right - left))
    for level, (panel, (rows, columns)) in enumerate(zip(panels, spatial_shapes, strict=True)):
        show_picture(panel, image, (height, width))
        panel.set(xlim=(left, right), ylim=(bottom, top))
        panel.set_title(f"level {level}: {rows} × {columns} pixels", fontsize=8)
        _grid(panel, (height, width), (rows, columns))
        if corners is not None:
            outline(panel, _rectangles((corners * extent.repeat(2))[None])[0], _RIGHT)
        for head in range(heads):
            strength, order = weights[head, level].sort()  # the strongest on top
            x, y = (locations[head, level, order] * extent).unbind(-1)
            points = panel.scatter(
                x.tolist(),
                y.tolist(),
                (14 + 66 * strength / strongest).tolist(),
                strength.tolist(),
                marker=_MARKERS[head % len(_MARKERS)],
                vmin=0,
                vmax=strongest,
                **_POINTS,
            )
        panel.plot(*(reference * extent).tolist(), **_CROSS)

    bar = figure.colorbar(points, ax=panels, shrink=0.8, aspect=25, pad=0.02)
    bar.set_label("attention weight", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    add_legend(figure, _attention_legend(heads, with_box=box is not None))
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def _grid(panel: "Axes", size: tuple[int, int], shape: tuple[int, int]) -> None:
    """Draw the borders between the pixels of a level of `shape` (H, W) on a picture of `size` (H, W)."""
    if max(shape) > _MOST_GRID_LINES:
        return
    (height, width), (rows, columns) = size, shape
    style: dict[str, Any] = {"colors": "white", "linewidths": 0.4, "alpha": 0.3}
    panel.vlines([i * width / columns for i in range(1, columns)], 0, height, **style)
    panel.hlines([i * height / rows for i in range(1, rows)], 0, width, **style)


def _view(points: Tensor, *, zoom: bool) -> Tensor:
    """Return the part of the picture to show, xyxy `[4]` in its width and height, with all `points [k, 2]` in it."""
    points = points[points.isfinite().all(-1)]
    low, high = points.amin(0), points.amax(0)
    margin = 0.03  # so that the marker of a point off the picture is whole
    first = torch.zeros_like(low).where(low >= 0, low - margin)
    last = torch.ones_like(high).where(high <= 1, high + margin)
    if zoom:
        side = ((high - low).amax() * 1.3).clamp(min=0.2).minimum(last - first)
        # Around the points, yet with no more beside the picture than they need.
        first = ((low + high - side) / 2).maximum(first).minimum(last - side)
        last = first + side
    return torch.cat((first, last))


def _attention_legend(heads: int, *, with_box: bool) -> "list[Artist]":
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linestyle": "none", "color": "#fd9a40", "markeredgecolor": "black", "markersize": 6}
    entries: list[Artist] = [
        Line2D([], [], marker=_MARKERS[head % len(_MARKERS)], label=f"head {head}", **style) for head in range(heads)
    ]
    entries.append(Line2D([], [], linestyle="none", label="reference point", **_CROSS | {"markersize": 8}))
    if with_box:
        entries.append(legend_line(_RIGHT, "reference box"))
    return entries


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
