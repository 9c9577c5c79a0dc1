"""level_start_index, the place of each level's first pixel: it follows from the sizes, and is judged by them."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from deform_attn.messages import fail, shown
from deform_attn.shape_checks import on_host, spatial_shapes_of
from deform_attn.tensor_checks import INT_DTYPES, dense, is_fake


def judged_sizes(spatial_shapes: Any, level_start_index: Any, name: str = "level_start_index") -> Any:
    """Return the sizes as an entry point takes them, after a look at the starts of the levels beside them.

    Levels follow one another without gaps, from 0. That is judged where the host may read both tensors: on the CPU, and
    outside of a graph that is traced.
    """
    sizes = on_host(spatial_shapes) if isinstance(spatial_shapes, Tensor) else spatial_shapes
    dense(name, level_start_index)
    if isinstance(sizes, Tensor) or torch.compiler.is_compiling() or _is_elsewhere(level_start_index):
        return sizes
    pixels = [H * W for H, W in spatial_shapes_of(sizes)]
    expected = [0, *accumulate(pixels[:-1])]
    starts = level_start_index.tolist()
    if level_start_index.dtype not in INT_DTYPES or starts != expected:
        fix = "Lay the levels one after the other, in the order of spatial_shapes."
        fail(name, f"levels without gaps, {shown(expected)}", shown(starts), fix)
    return sizes


def _is_elsewhere(tensor: Tensor) -> bool:
    return not tensor.is_cpu or is_fake(tensor)
