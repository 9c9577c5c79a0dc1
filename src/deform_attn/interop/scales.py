"""Scales: the buffer in which some modules keep the scale of each of their points, and why one is not ours."""

from collections.abc import Sequence

import torch
from torch import Tensor


def reason_against_scales(scales: Tensor, num_points: Sequence[int]) -> str | None:
    """Return why a module that keeps the scales of its points, one a point, is not one that we compute.

    `deform_attn` divides by the number of points of the level instead.
    """
    expected = [1 / P for P in num_points for _ in range(P)]
    # A model in bfloat16 holds them rounded. One on the meta device holds nothing yet.
    if not scales.is_meta and not torch.allclose(scales.double().cpu(), torch.tensor(expected).double(), rtol=2**-8):
        return "its scales of the points are not 1 / the points of their level"
    return None
