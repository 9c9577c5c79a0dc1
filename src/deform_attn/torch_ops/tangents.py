"""Tangents of the classic op: how it moves when its inputs move, and how its gradients do.

They are the forward-mode derivatives, and what the derivative of a gradient is made of. The op is linear in value and
in the weights, so that along these the ops themselves do the work. Along a location it is the slope of the cell that
the location lies in, written out here in plain torch; cells, edges and unread corners are those of reference.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deform_attn import reference
from deform_attn.torch_ops.schema import SAMPLE, pairs

Tangent = Tensor | None  # None stands for 0


def of_output(inputs: Sequence[Any], moves: Sequence[Tangent]) -> Tensor:
    """Return how the output moves, `[N, Q, M*D]`, where value, locations and weights move by `moves`.

    `inputs` are the arguments of the op: value, shapes, locations, weights, num_points, interpolation, padding_mode.
    """
    value, shapes, locations, weights, *options = inputs
    move_value, move_locations, move_weights = moves
    N, _, M, D = value.shape
    output = value.new_zeros((N, locations.shape[1], M * D))
    if move_value is not None:
        output = output + SAMPLE.forward(move_value, shapes, locations, weights, *options)
    if move_weights is not None:
        output = output + SAMPLE.forward(value, shapes, locations, move_weights, *options)
    if move_locations is not None:
        levels = [
            (level.weights[..., None] * sum(c.change[..., None] * c.pixels for c in level.corners)).sum(3)
            for level in _levels(inputs, move_locations)
            if level.corners
        ]
        if levels:
            output = output + torch.stack(levels).sum(0).reshape(output.shape).to(value.dtype)
    return output


def of_gradients(grad_output: Tensor, inputs: Sequence[Any], moves: Sequence[Tangent]) -> list[Tensor]:
    """Return how the gradients of value, locations and weights move where these inputs move by `moves`.

    Second derivatives are symmetric: it is also the gradient of <grad_output, of_output(inputs, moves)>.
    """
    value, shapes, locations, weights, *options = inputs
    move_value, move_locations, move_weights = moves
    move_grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]

    def add(value: Tensor, weights: Tensor, wanted: list[bool]) -> None:
        grads = SAMPLE.backward(grad_output, value, shapes, locations, weights, *options, wanted)
        for i in range(3):
            if wanted[i]:
                move_grads[i] = move_grads[i] + grads[i].to(move_grads[i].dtype)

    if move_value is not None:
        add(move_value, weights, [False, True, True])
    if move_weights is not None:
        add(value, move_weights, [True, True, False])
    if move_locations is not None:
        parts = _along_locations(grad_output, inputs, move_locations)
        move_grads = [move + part.to(move.dtype) for move, part in zip(move_grads, parts, strict=True)]
    return move_grads


class _Corner(NamedTuple):
    """One of the four corners of all cells that the points of a level lie in."""

    place: tuple[Tensor, Tensor, Tensor]  # of its pixel in the level's map [N, H*W, M, D]
    pixels: Tensor  # [N, Q, M, P, D], 0 where it is not read
    read: Tensor  # [N, Q, M, P, D]
    change: Tensor  # of its bilinear weight, as the locations move, [N, Q, M, P]
    twist: int  # the bilinear weight's mixed derivative


class _Level(NamedTuple):
    """One level, with the points that lie on it."""

    value: Tensor  # [N, H*W, M, D]
    weights: Tensor  # [N, Q, M, P]
    pixels_moved: Tensor  # [N, Q, M, P, 2]
    pixels_per_unit: Tensor  # the slope of pixels along locations, [N, Q, M, P, 2]
    corners: list[_Corner]  # none on an empty level


def _levels(inputs: Sequence[Any], move_locations: Tensor) -> Iterator[_Level]:
    value, shapes, locations, weights, num_points, interpolation, padding_mode = inputs
    if interpolation == "nearest":  # it moves in steps, without a slope
        return
    dtype = reference.compute_dtype(value, locations, weights)
    sizes = pairs(shapes)
    maps = value.to(dtype).split([H * W for H, W in sizes], dim=1)
    parts = (tensor.to(dtype).split(list(num_points), dim=3) for tensor in (locations, move_locations, weights))
    for x, (H, W), points, move, A in zip(maps, sizes, *parts, strict=True):
        size = torch.tensor([W, H], dtype=dtype, device=points.device)
        pixels = points * size - 0.5  # [N, Q, M, P, 2]
        slope = size.expand(pixels.shape)
        if padding_mode == "border":
            slope = torch.where((pixels < 0) | (pixels >= size - 1), 0, slope)
            pixels = torch.minimum(pixels.clamp(min=0), size - 1)
        moved = move * slope
        yield _Level(x, A, moved, slope, _corners(x, (H, W), pixels, moved, padding_mode) if H * W else [])


def _corners(x: Tensor, size: tuple[int, int], pixels: Tensor, moved: Tensor, padding_mode: str) -> list[_Corner]:
    H, W = size
    (px, py), (dx, dy) = pixels.unbind(-1), moved.unbind(-1)
    inside = (px > -1) & (px < W) & (py > -1) & (py < H)  # False for NaN and infinity
    px, py = torch.where(inside, px, -2), torch.where(inside, py, -2)
    left, top = px.floor(), py.floor()
    right, bottom = left + 1, top + 1
    u, v = px - left, py - top
    if padding_mode == "border":
        right, bottom = right.clamp(max=W - 1), bottom.clamp(max=H - 1)
    n = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
    m = torch.arange(x.shape[2], device=x.device)[:, None]
    corners = []
    for column, row, weight, change, twist in (
        (left, top, (1 - u) * (1 - v), -(1 - v) * dx - (1 - u) * dy, 1),
        (right, top, u * (1 - v), (1 - v) * dx - u * dy, -1),
        (left, bottom, (1 - u) * v, -v * dx + (1 - u) * dy, -1),
        (right, bottom, u * v, v * dx + u * dy, 1),
    ):
        on_map = inside & (column >= 0) & (column < W) & (row >= 0) & (row < H)
        place = n, torch.where(on_map, row.long() * W + column.long(), 0), m
        corner = x[place]  # [N, Q, M, P, D]
        read = on_map[..., None] & ((weight != 0)[..., None] | corner.isfinite())
        change = torch.where(on_map, change, 0)
        corners.append(_Corner(place, torch.where(read, corner, 0), read, change, twist))
    return corners


def _along_locations(grad_output: Tensor, inputs: Sequence[Any], move_locations: Tensor) -> tuple[Tensor, ...]:
    """Return how the gradients of value, locations and weights move, where only the locations do."""
    value, _, locations, weights, *_ = inputs
    dtype = reference.compute_dtype(value, locations, weights)
    N, _, M, D = value.shape
    grad = grad_output.to(dtype).reshape(N, locations.shape[1], M, 1, D)  # [N, Q, M, 1, D]
    levels = []
    for level in _levels(inputs, move_locations):
        move_value = torch.zeros_like(level.value)
        if not level.corners:  # an empty level passes nothing on, not even 0 times a NaN
            levels.append((move_value, torch.zeros_like(level.pixels_moved), torch.zeros_like(level.weights)))
            continue
        slope, twist = grad.new_zeros(()), grad.new_zeros(())
        for c in level.corners:
            share = (level.weights * c.change)[..., None] * grad  # [N, Q, M, P, D]
            move_value = move_value.index_put(c.place, torch.where(c.read, share, 0), accumulate=True)
            slope = slope + c.change[..., None] * c.pixels
            twist = twist + c.twist * c.pixels
        move_weights = (grad * slope).sum(-1).expand(level.weights.shape)  # [N, Q, M, P]
        bend = (level.weights * (grad * twist).sum(-1))[..., None]  # [N, Q, M, P, 1]
        levels.append((move_value, bend * level.pixels_moved.flip(-1) * level.pixels_per_unit, move_weights))
    if not levels:
        return tuple(torch.zeros_like(tensor) for tensor in (value, locations, weights))
    values, points, shares = zip(*levels, strict=True)
    return torch.cat(values, dim=1), torch.cat(points, dim=3), torch.cat(shares, dim=3)
