"""Cells: which pixels a location reads, and with what shares. Said once, for the maths and for its derivatives.

The centre of pixel i lies at (i + 0.5) / W. Between four centres lies a cell, and a bilinear read weighs its corners by
how near they are. Everything here is laid out by points: an axis T holds the points of all levels, level by level.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deform_attn.shape_checks import Pairs
from deform_attn.whole_numbers import MOST, MOST_NUMBERS


class Maps(NamedTuple):
    """The map that each of the T points of a head lies on; all are `[T]`, `empty` bool and the others integers."""

    H: Tensor
    W: Tensor
    P: Tensor  # how many points a head has there
    first: Tensor  # of its pixels, among those of all maps
    empty: Tensor  # whether it has no pixels: nothing that belongs to its points reaches any arithmetic


def maps_of(spatial_shapes: Pairs | Tensor, num_points: Sequence[int], like: Tensor) -> Maps:
    """Return the maps of the points, of which level l has `num_points[l]`, on the device of `like`.

    Sizes in a tensor `[L, 2]` nobody has judged: a level with a side below 0 or of 2^31 and more is empty, and where
    the maps reach beyond the pixels that there are, nothing is read (`cells_of`).
    """
    like = like.new_empty((), dtype=torch.long)
    if isinstance(spatial_shapes, Tensor):
        sizes = spatial_shapes.to(like)
        possible = ((sizes >= 0) & (sizes <= MOST)).all(-1, keepdim=True)
        H, W = torch.where(possible, sizes, 0).unbind(-1)
        pixels = (H * W).clamp(max=MOST_NUMBERS)  # so that their sum is a number of 64 bits, too
        columns: list[Sequence[Any]] = [each.unbind() for each in (H, W, pixels.cumsum(0) - pixels)]
    else:
        areas = [H * W for H, W in spatial_shapes]
        firsts = itertools.accumulate(areas[:-1], initial=0)
        columns = [[H for H, _ in spatial_shapes], [W for _, W in spatial_shapes], list(firsts)]

    def of_points(numbers: Sequence[Any]) -> Tensor:
        # Filled, not made of a list: that would wait for a GPU, and make constants of symbolic sizes.
        pairs = zip(numbers, num_points, strict=True)
        return torch.cat([n.expand(P) if isinstance(n, Tensor) else like.new_full((P,), n) for n, P in pairs])

    H, W, first = map(of_points, columns)
    return Maps(H, W, of_points(num_points), first, (H == 0) | (W == 0))


def in_pixels(coordinate: Tensor, size: Tensor, interpolation: str) -> Tensor:
    """Return a `coordinate`, 1 at the far end of its map, in pixels of a map of this `size`: 0 at the first centre.

    Of "nearest" it is the centre of the pixel that it lies in.
    """
    return (coordinate * size).floor() if interpolation == "nearest" else coordinate * size - 0.5


def placed(x: Tensor, size: Tensor, padding_mode: str) -> Tensor:
    """Return `x`, in pixels, where it is read: one far off the map, NaN and infinity at -2, whence nothing is read.

    With padding "border" what lies beyond the outermost centre is read there.
    """
    if padding_mode == "border":
        # Not clamp: at a bound itself some versions of torch pass a gradient on, others do not. The first centre passes
        # one on; the last one does not, since the surface is level beyond.
        x = torch.where(x >= size - 1, size - 1, torch.where(x < 0, 0, x))
    # The size may be none of the numbers of float32, which above 2^24 leaves some out; so its double.
    return torch.where((x > -1) & (x < 2 * size), x, -2)


class Axis(NamedTuple):
    """Where points lie along one axis of their maps: between two neighbouring pixels, all `[N, Q, M, T]`.

    `low` and `high` are the pixels, which lie off the map where they are negative or not below its size. Of a weight of
    1 `high` gets `share`, and `low` the rest; `rate` is how fast `share` grows along the axis.
    """

    low: Tensor
    high: Tensor
    share: Tensor
    rate: Tensor


def axis(coordinate: Tensor, size: Tensor, interpolation: str, padding_mode: str) -> Axis:
    """Return where points of this `coordinate` lie on maps of this `size`; of "nearest" `low` has all the weight."""
    last = size - 1
    raw = in_pixels(coordinate, size, interpolation)
    x = placed(raw, size, padding_mode)
    whole = x.floor()
    # From here on in integers, which know every size.
    low = whole.long()
    high = low + 1
    rate = torch.zeros_like(size) if interpolation == "nearest" else size
    if padding_mode == "border":  # beyond the last pixel lies its copy
        low, high = torch.where(raw > last, last, low).minimum(last), high.minimum(last)
        rate = torch.where((raw >= 0) & (raw < last), rate, 0)
    return Axis(low, high, x - whole, rate)


class Corner(NamedTuple):
    """One of the pixels that the points read, all `[N, Q, M, T]`.

    `place` is where it is in the padded maps (see `Cells`), `across` and `down` are its shares along x and y, whose
    product is its weight. `right` and `below` are 1 or -1: the sign with which the shares grow.
    """

    place: tuple[Tensor, Tensor, Tensor]  # along N, S + 1 and M
    on_map: Tensor
    across: Tensor
    down: Tensor
    right: int
    below: int


class Cells(NamedTuple):
    """The cells that points lie in, and the maps that hold their corners.

    `padded [N, S + 1, M, D]` are the maps, and behind the last pixel one of 0 for everything off the map; its gradient
    is dropped with it.
    """

    padded: Tensor
    columns: Axis
    rows: Axis
    corners: Iterator[Corner]  # made one by one, as each takes the memory of a number per point


def cells_of(value: Tensor, maps: Maps, locations: Tensor, interpolation: str, padding_mode: str) -> Cells:
    """Return the cells in the maps `value [N, S, M, D]` that the points at `locations [N, Q, M, T, 2]` lie in.

    Each has four corners; of "nearest" it is the one pixel that its point lies in.
    """
    x, y = locations[..., 0], locations[..., 1]  # not unbind, of which an exporter to ONNX may make a sequence
    columns = axis(x, maps.W, interpolation, padding_mode)
    rows = axis(y, maps.H, interpolation, padding_mode)
    padded = torch.nn.functional.pad(value, (0, 0, 0, 0, 0, 1))
    return Cells(padded, columns, rows, _corners(value, maps, columns, rows, interpolation))


def _corners(value: Tensor, maps: Maps, columns: Axis, rows: Axis, interpolation: str) -> Iterator[Corner]:
    N, S, M, _ = value.shape
    n = torch.arange(N, device=value.device)[:, None, None, None]
    m = torch.arange(M, device=value.device)[:, None]
    signs = (-1,) if interpolation == "nearest" else (-1, 1)
    for below in signs:
        row, down = (rows.high, rows.share) if below > 0 else (rows.low, 1 - rows.share)
        for right in signs:
            column, across = (columns.high, columns.share) if right > 0 else (columns.low, 1 - columns.share)
            pixel = maps.first + row * maps.W + column
            on_map = (column >= 0) & (column < maps.W) & (row >= 0) & (row < maps.H) & (pixel < S)
            pixel = torch.where(on_map, pixel, S)
            yield Corner((n, pixel, m), on_map, across, down, right, below)
