"""Point scales, which RT-DETRv2 and D-FINE keep in a buffer, where `deform_attn` divides by the number of points."""

import torch
from torch import Tensor

from deform_attn.interop.rules import Layout

METHODS = ("default", "discrete")


def reason_against_scales(scales: Tensor, layout: Layout) -> str | None:
    """Return why a module with these scales of its points, one a point, and this layout is not one that we compute."""
    if layout.method not in METHODS:
        return f"its sampling method is {layout.method!r}, not one of {', '.join(METHODS)}"
    expected = [1 / P for P in layout.num_points for _ in range(P)]
    # A model in bfloat16 holds them rounded. One on the meta device holds nothing yet.
    if not scales.is_meta and not torch.allclose(scales.double().cpu(), torch.tensor(expected).double(), rtol=2**-8):
        return "its scales of the points are not 1 / the points of their level"
    return None
