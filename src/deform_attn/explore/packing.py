"""The packing: a layer's numbers as text that a page can hold, rounded, and thinned out where they are too many.

A location is stored as two whole numbers of 16 bits on a grid that spans twice the picture, from half a picture to the
left of it (above it) to half a picture to the right (below). It is wrong by at most 1/65,534 of the picture's side,
0.016 pixel of 1000. One further out is stored at the grid's border, one that is no number as 65,535. A weight is a
whole number of 16 bits in units of the layer's largest weight / 65,535. Reference points are float32.
"""

import base64
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deform_attn.explore.extra import explore_extra
from deform_attn.explore.layer import Layer

STEPS = 65_534
"""Of the grid of locations."""
NOWHERE = 65_535
"""Instead of a coordinate that is no number."""


@dataclass(frozen=True)
class Kept:
    """Which queries of a layer are on the page: `queries`, ascending, of an encoder every `steps[level]`-th pixel in
    each direction, of a decoder those of the detections and every `steps[0]`-th of all.
    """

    queries: Tensor
    steps: tuple[int, ...]


def query_bytes(layer: Layer) -> int:
    """Return how many characters one query of `layer` takes, in base64."""
    points = layer.num_heads * sum(layer.num_points)
    return -(-(points * 6 + layer.references[0].numel() * 4 + 4) * 4 // 3)


def keep_pixels(layer: Layer, most: int) -> Kept:
    """Return a regular part of an encoder's queries, `most` or fewer, as even over the picture as whole steps allow.

    Raises:
        ValueError: `most` is less than a query a level.
    """
    shapes = layer.spatial_shapes
    if most < sum(height > 0 and width > 0 for height, width in shapes):
        raise ValueError(f"{layer.name}: too many heads, points and layers for one page; pass fewer of the records")
    steps = [1] * len(shapes)

    def count(level: int) -> int:
        (height, width), step = shapes[level], steps[level]
        return -(-height // step) * -(-width // step)

    while sum(map(count, range(len(shapes)))) > most:
        steps[max(range(len(shapes)), key=count)] += 1
    queries = []
    for level, ((height, width), step) in enumerate(zip(shapes, steps, strict=True)):
        rows, columns = (_spread(side, step) for side in (height, width))
        queries.append((layer.queries_of(level).start + rows[:, None] * width + columns).flatten())
    return Kept(torch.cat(queries), tuple(steps))


def keep_queries(layer: Layer, wanted: Collection[int], most: int) -> Kept:
    """Return the `wanted` queries of a decoder and every k-th of all, `most` or fewer.

    Raises:
        ValueError: more are wanted.
    """
    total, step = len(layer.locations), 1
    chosen = torch.zeros(total, dtype=torch.bool)
    if len(set(wanted)) > most:
        raise ValueError(f"detections: expected at most {most} on one page, got {len(set(wanted))}; pass the best")
    while True:
        chosen[:] = False
        chosen[::step] = True
        chosen[list(wanted)] = True
        if chosen.sum() <= most:
            return Kept(chosen.nonzero().flatten(), (step,))
        if step >= total:
            chosen[0] = 0 in wanted
            return Kept(chosen.nonzero().flatten(), (step,))
        step += 1


def pack(layer: Layer, kept: Kept, size: tuple[int, int]) -> dict[str, Any]:
    """Return what the page needs to know about `layer`, ready for JSON; `size` is the picture's (H, W)."""
    height, width = size
    side = layer.locations.new_tensor([width, height], dtype=torch.float64)
    locations = layer.locations[kept.queries].double()  # [K, M, T, 2]
    places = ((locations / side + 0.5) / 2 * STEPS).round().clamp(0, STEPS)
    nowhere = ~locations.isfinite().all(-1, keepdim=True) & locations.isnan().any(-1, keepdim=True)
    places = places.masked_fill(nowhere, NOWHERE)
    weights = layer.weights[kept.queries].double()
    largest = float(weights.max()) if weights.numel() and weights.max() > 0 else 1.0
    return {
        "name": layer.name,
        "module": layer.module,
        "encoder": layer.is_encoder,
        "heads": layer.num_heads,
        "shapes": layer.spatial_shapes,
        "counts": layer.num_points,
        "steps": kept.steps,
        "total": len(layer.locations),
        "reference": list(layer.references.shape[1:]),
        "largest": largest,
        "queries": _text(kept.queries, "<u4"),
        "locations": _text(places, "<u2"),
        "weights": _text((weights / largest * 65_535).round().clamp(0, 65_535), "<u2"),
        "references": _text(layer.references[kept.queries], "<f4"),
    }


def _spread(side: int, step: int) -> Tensor:
    """Return every `step`-th of `side` numbers, as far from the first as from the last."""
    count = -(-side // step)
    return torch.arange(count) * step + (side - 1 - (count - 1) * step) // 2


def _text(values: Tensor, dtype: str) -> str:
    with explore_extra():
        import numpy as np

    return base64.b64encode(np.ascontiguousarray(values.numpy().astype(dtype)).tobytes()).decode()
