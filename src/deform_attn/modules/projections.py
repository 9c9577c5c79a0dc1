"""The projections of a module: how they start, and whether they are the linear maps that they were built as."""

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from deform_attn import module_checks, torch_names


def directional_offsets(num_heads: int, num_points: Sequence[int]) -> Tensor:
    """Return the offsets at initialisation `[M, T, 2]`: head m in direction 2*pi*m/M, its k-th point k steps far."""
    angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)  # onto the square around the reference
    steps = torch.cat([torch.arange(1, P + 1) for P in num_points])
    return directions[:, None] * steps[:, None]


def reset(*projections: nn.Linear) -> None:
    """Draw the weights of `value_proj` and `output_proj` anew, as the published modules do; biases start at 0."""
    for projection in projections:
        nn.init.xavier_uniform_(projection.weight)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)


def is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether calling `linear` does nothing but its matrix product, so that the product may be taken elsewhere.

    Hooks must be called, and so must parametrisations, adapters and quantised layers, which put another class in its
    place or in that of its weight.
    """
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and (linear.bias is None or type(linear.bias) is nn.Parameter)
        and not (linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks)
        and not linear._backward_pre_hooks
        and "forward" not in vars(linear)
        and not torch_names.hooks_on_all_modules()
    )


def check_like_weight(name: str, tensor: Tensor, linear: nn.Module) -> None:
    """Judge the device and dtype of what `linear` is given, where nothing but its own weight decides what it takes."""
    if is_plain(linear):
        module_checks.like_weight(name, tensor, linear.weight)
