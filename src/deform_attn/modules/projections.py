"""The projections of a module: how they start, how they are applied, and what they take."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deform_attn import module_checks, torch_names


def directional_offsets(num_heads: int, num_points: Sequence[int]) -> Tensor:
    """Return the offsets at initialisation `[M, T, 2]`: head m in direction 2*pi*m/M, its k-th point k steps far."""
    angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)  # onto the square around the reference
    steps = torch.cat([torch.arange(1, P + 1) for P in num_points])
    return directions[:, None] * steps[:, None]


def reset(*projections: nn.Linear) -> None:
    """Draw new weights of `value_proj` and `output_proj`, as the published modules do; biases start at 0."""
    for projection in projections:
        nn.init.xavier_uniform_(projection.weight)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)


_FORWARD = nn.Linear.forward  # which a profiler or a quantiser may replace for all layers


def plain_weight(linear: nn.Module) -> nn.Parameter | None:
    """Return the weight of `linear` if calling it does nothing but its matrix product, else None.

    Hooks must be called, and so must parametrisations, adapters and quantised layers, which put another class in its
    place or in that of its weight.
    """
    if (
        type(linear) is not nn.Linear
        or nn.Linear.forward is not _FORWARD
        or linear._forward_hooks
        or linear._forward_pre_hooks
        or linear._backward_hooks
        or linear._backward_pre_hooks
        or "forward" in vars(linear)
        or torch_names.hooks_on_all_modules()
    ):
        return None
    parameters = linear._parameters  # asked directly, since a module takes its time to look for an attribute
    weight, bias = parameters.get("weight"), parameters.get("bias", "elsewhere")
    return weight if type(weight) is nn.Parameter and (bias is None or type(bias) is nn.Parameter) else None


def project(linear: nn.Module, tensor: Tensor) -> Tensor:
    """Return `linear(tensor)`."""
    weight = plain_weight(linear)
    return linear(tensor) if weight is None else F.linear(tensor, weight, linear._parameters["bias"])


def check_like_weight(name: str, tensor: Tensor, linear: nn.Module) -> None:
    """Judge the device and dtype of what `linear` is given, where nothing but its own weight decides what it takes."""
    weight = plain_weight(linear)
    if weight is not None:
        module_checks.like_weight(name, tensor, weight)
