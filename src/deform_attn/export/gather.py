"""The form `gather`: pixels by index, four rows a point, without GridSample and without an axis beyond the fifth."""

import torch
from torch import Tensor

from deform_attn.cells import cells_of, maps_of
from deform_attn.checks import SamplingInputs
from deform_attn.reference import compute_dtype


def sample(inputs: SamplingInputs) -> Tensor:
    """Return the output `[N, Q, M*D]` for finite numbers: what reference.py computes, of rows of one flat table."""
    value, shapes, locations, weights, num_points, interpolation, padding_mode = inputs
    N, S, M, D = value.shape
    dtype = compute_dtype(value, locations, weights)
    maps = maps_of(shapes, num_points, value)
    cells = cells_of(value.to(dtype), maps, locations.to(dtype), interpolation, padding_mode)
    table = cells.padded.reshape(-1, D)  # [N*(S+1)*M, D]
    shares = weights.to(dtype)  # [N, Q, M, T]
    output = value.new_zeros((), dtype=dtype)
    for corner in cells.corners:
        image, pixel, head = corner.place
        row = (image * (S + 1) + pixel) * M + head  # [N, Q, M, T]
        pixels = table.index_select(0, row.flatten()).reshape(*row.shape, D)  # [N, Q, M, T, D]
        share = torch.where(corner.on_map, corner.across * corner.down, 0) * shares
        output = output + (share[..., None] * pixels).sum(3)  # [N, Q, M, D]
    return output.reshape(N, locations.shape[1], M * D).to(value.dtype)
