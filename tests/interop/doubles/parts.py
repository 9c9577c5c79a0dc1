"""What the doubles share: linear maps, where they look, what is read there, and an op with a backward."""

import math

import torch
from torch import nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F


def add_linear_maps(module, channels, heads, points, *, value_channels=None, projected=True):
    """Give a module the linear maps that all of the family have; `points` is the number of points of each level."""
    module.sampling_offsets = nn.Linear(channels, heads * sum(points) * 2)
    module.attention_weights = nn.Linear(channels, heads * sum(points))
    if projected:
        value_channels = channels if value_channels is None else value_channels
        module.value_proj = nn.Linear(channels, value_channels)
        module.output_proj = nn.Linear(value_channels, channels)
    start(module, heads, points)


def start(module, heads, points):
    """Set the offsets to rings around the reference point, a direction per head, and all weights alike."""
    angles = [2 * math.pi * m / heads for m in range(heads)]
    directions = [torch.tensor([math.cos(angle), math.sin(angle)]) for angle in angles]
    rings = [
        k * direction / direction.abs().max()
        for direction in directions
        for count in points
        for k in range(1, count + 1)
    ]
    with torch.no_grad():
        module.sampling_offsets.bias.copy_(torch.cat(rings))
        for parameter in (module.sampling_offsets.weight, *module.attention_weights.parameters()):
            parameter.zero_()
        for name in ("value_proj", "output_proj"):
            if hasattr(module, name):
                nn.init.xavier_uniform_(getattr(module, name).weight)
                getattr(module, name).bias.zero_()


def heads_of(value, heads, padding=None):
    """Return projected pixels `[N, S, C]` as heads `[N, S, M, D]`, those of padding as zeros."""
    if padding is not None:
        value = torch.where(padding[..., None], torch.zeros_like(value), value)
    return value.unflatten(-1, (heads, -1))


def look(module, query, references, shapes, heads, points, *, scale=0.5):
    """Return locations `[N, Q, M, T, 2]` and weights `[N, Q, M, T]`, the points of all levels one after another.

    `references` are `[N, Q, L or 1, 2]` points or `[N, Q, L or 1, 4]` boxes; `shapes` holds (H, W).
    """
    offsets = module.sampling_offsets(query).unflatten(-1, (heads, sum(points), 2))
    weights = module.attention_weights(query).unflatten(-1, (heads, sum(points))).softmax(-1)
    counts = torch.tensor(points)
    if references.shape[2] > 1:
        references = references.repeat_interleave(counts, dim=2)  # [N, Q, T, 2 or 4]
    centres = references[:, :, None, :, :2]
    if references.shape[-1] == 2:
        pixels = torch.as_tensor(shapes).flip(-1).repeat_interleave(counts, dim=0)  # [T, 2], (W, H)
        return centres + offsets / pixels, weights
    if references.shape[-1] == 4:
        share = (1 / counts.to(offsets)).repeat_interleave(counts)[:, None]  # [T, 1]
        return centres + offsets * share * references[:, :, None, :, 2:] * scale, weights
    raise ValueError(f"reference points have 2 or 4 numbers, not {references.shape[-1]}")


def by_level(locations, weights, levels):
    """Return flat points as `[N, Q, M, L, P, 2]` and `[N, Q, M, L, P]`."""
    return locations.unflatten(3, (levels, -1)), weights.unflatten(3, (levels, -1))


def read(value, shapes, locations, weights, points):
    """Return `[N, Q, M*D]`: pixels of `value [N, S, M, D]` at flat locations, bilinear, weighted and summed."""
    N, _, M, _ = value.shape
    sizes = [(int(h), int(w)) for h, w in shapes]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in sizes], dim=-1)  # L of [N*M, D, H*W]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1).split(points, dim=2)  # L of [N*M, Q, P, 2]
    pixels = [
        F.grid_sample(one.unflatten(-1, size), grid, align_corners=False)
        for one, size, grid in zip(maps, sizes, grids, strict=True)
    ]
    shares = weights.transpose(1, 2).flatten(0, 1)  # [N*M, Q, T]
    heads = torch.einsum("bdqt,bqt->bqd", torch.cat(pixels, dim=-1), shares)
    return heads.unflatten(0, (N, M)).transpose(1, 2).flatten(2)


def read_by_level(value, shapes, locations, weights):
    """Return what `read` does for points `[N, Q, M, L, P, 2]`, as the projects' core in Python takes them."""
    points = [locations.shape[4]] * locations.shape[3]
    return read(value, shapes, locations.flatten(3, 4), weights.flatten(3, 4), points)


def function_of(forward, backward):
    """Return the autograd function that runs an op forward and backward, and takes the op's six arguments."""

    class Op(Function):
        @staticmethod
        def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
            ctx.im2col_step = im2col_step
            ctx.save_for_backward(value, shapes, starts, locations, weights)
            return forward(value, shapes, starts, locations, weights, im2col_step)

        @staticmethod
        @once_differentiable
        def backward(ctx, gradient):
            of_value, of_locations, of_weights = backward(*ctx.saved_tensors, gradient, ctx.im2col_step)
            return of_value, None, None, of_locations, of_weights, None

    return Op
