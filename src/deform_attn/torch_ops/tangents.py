"""Tangents of the classic op: how it moves when its inputs move, and how its gradients do.

They are the forward-mode derivatives, and what the derivative of a gradient is made of. The op is linear in value and
in the weights, so that along these the ops themselves do the work. Along a location it is the slope of the cell that
the location lies in, written out here in plain torch; cells and edges are those of cells.py.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deform_attn import reference
from deform_attn.cells import cells_of, maps_of
from deform_attn.torch_ops.schema import sample_of, sizes_of

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
        output = output + sample_of(shapes).forward(move_value, shapes, locations, weights, *options)
    if move_weights is not None:
        output = output + sample_of(shapes).forward(value, shapes, locations, move_weights, *options)
    if move_locations is not None and (along := _along(inputs, move_locations)):
        slope = _sum(c.change[..., None] * c.pixels for c in along.corners)  # [N, Q, M, T, D]
        output = output + (along.weights[..., None] * slope).sum(3).reshape(output.shape).to(value.dtype)
    return output


def of_gradients(grad_output: Tensor, inputs: Sequence[Any], moves: Sequence[Tangent]) -> list[Tensor]:
    """Return how the gradients of value, locations and weights move where these inputs move by `moves`.

    Second derivatives are symmetric: it is also the gradient of <grad_output, of_output(inputs, moves)>.
    """
    value, shapes, locations, weights, *options = inputs
    move_value, move_locations, move_weights = moves
    move_grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]

    def add(value: Tensor, weights: Tensor, wanted: list[bool]) -> None:
        grads = sample_of(shapes).backward(grad_output, value, shapes, locations, weights, *options, wanted)
        for i in range(3):
            if wanted[i]:
                move_grads[i] = move_grads[i] + grads[i].to(move_grads[i].dtype)

    if move_value is not None:
        add(move_value, weights, [False, True, True])
    if move_weights is not None:
        add(value, move_weights, [True, True, False])
    if move_locations is not None and (along := _along(inputs, move_locations)):
        parts = along.gradients(grad_output)
        move_grads = [move + part.to(move.dtype) for move, part in zip(move_grads, parts, strict=True)]
    return move_grads


class _Corner(NamedTuple):
    """One of the four corners of the points' cells."""

    place: tuple[Tensor, Tensor, Tensor]  # of its pixel in the maps [N, S + 1, M, D]
    pixels: Tensor  # [N, Q, M, T, D], 0 where it is not read
    read: Tensor  # [N, Q, M, T, D]
    change: Tensor  # of its bilinear weight, as the locations move, [N, Q, M, T]
    twist: int  # the bilinear weight's mixed derivative


class _Along(NamedTuple):
    """The points of a call, whose locations move."""

    maps: Tensor  # of all levels, and behind them the pixel that stands for everything off the map, [N, S + 1, M, D]
    weights: Tensor  # [N, Q, M, T], 0 on empty levels
    moves: Tensor  # in pixels, [N, Q, M, T, 2]
    rates: Tensor  # pixels for a unit of the locations, [N, Q, M, T, 2]
    corners: list[_Corner]

    def gradients(self, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return how the gradients of value, locations and weights move."""
        N, _, M, D = self.maps.shape
        Q = self.weights.shape[1]  # said, since without channels torch cannot tell
        grad = grad_output.to(self.weights.dtype).reshape(N, Q, M, 1, D)  # [N, Q, M, 1, D]
        move_maps = torch.zeros_like(self.maps)
        for c in self.corners:
            share = (self.weights * c.change)[..., None] * grad  # [N, Q, M, T, D]
            move_maps = move_maps.index_put(c.place, torch.where(c.read, share, 0), accumulate=True)
        slope = _sum(c.change[..., None] * c.pixels for c in self.corners)  # [N, Q, M, T, D]
        twist = _sum(c.twist * c.pixels for c in self.corners)
        bend = self.weights * (grad * twist).sum(-1)  # [N, Q, M, T]
        return move_maps[:, :-1], bend[..., None] * self.moves.flip(-1) * self.rates, (grad * slope).sum(-1)


def _along(inputs: Sequence[Any], move_locations: Tensor) -> _Along | None:
    """Return the points as they move; None where nothing does."""
    value, shapes, locations, weights, num_points, interpolation, padding_mode = inputs
    if interpolation == "nearest":  # it moves in steps, without a slope
        return None
    dtype = reference.compute_dtype(value, locations, weights)
    value, locations = value.to(dtype), locations.to(dtype)
    maps = maps_of(sizes_of(shapes), num_points, value)
    cells = cells_of(value, maps, locations, interpolation, padding_mode)
    rates = torch.stack((cells.columns.rate, cells.rows.rate), -1).expand_as(locations).to(dtype)  # [N, Q, M, T, 2]
    moves = move_locations.to(dtype) * rates
    dx, dy = moves.unbind(-1)
    corners = []
    for c in cells.corners:
        pixels = cells.padded[c.place]  # [N, Q, M, T, D]
        read = c.on_map[..., None] & ((c.across * c.down != 0)[..., None] | pixels.isfinite())
        change = torch.where(c.on_map, c.right * dx * c.down + c.below * dy * c.across, 0)
        corners.append(_Corner(c.place, torch.where(read, pixels, 0), read, change, c.right * c.below))
    return _Along(cells.padded, weights.to(dtype).masked_fill(maps.empty, 0), moves, rates, corners)


def _sum(terms: Iterator[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)
