"""Reference points: where the queries of an encoder look first."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn import module_checks, reference, shape_checks, tracing


def encoder_reference_points(
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    valid_ratios: Tensor | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the centres of all pixels of all levels, where an encoder's queries look first.

    Args:
        spatial_shapes: L pairs (H, W).
        valid_ratios: `[N, L, 2]` as (x, y): the part of each level's width and height that is picture, not padding, in
            (0, 1]. A point keeps its place in the picture from level to level.
        device: of the result; by default that of valid_ratios.
        dtype: of the result; by default that of valid_ratios, else float32.

    Returns:
        `[N, S, L, 2]` as (x, y): for each query its point on each level; N = 1 without valid_ratios.

    Raises:
        ValueError, TypeError: sizes, a device or a dtype that do not fit; the message names the argument.

    Example:
        >>> from deform_attn import encoder_reference_points
        >>> encoder_reference_points([(1, 2)])[0, :, 0]
        tensor([[0.2500, 0.5000],
                [0.7500, 0.5000]])
    """
    shapes: Any = shape_checks.spatial_shapes_of(spatial_shapes)
    module_checks.place(device, dtype)
    L = len(shapes)
    if is_tracing() and isinstance(recorded := tracing.sizes(spatial_shapes), Tensor):
        shapes = [(recorded[level, 0], recorded[level, 1]) for level in range(L)]
    if valid_ratios is None:
        valid_ratios = torch.ones(1, L, 2, device=device, dtype=dtype)
    else:
        module_checks.axes("valid_ratios", valid_ratios, "N L 2", {"L": L, "2": 2})
        valid_ratios = valid_ratios.to(device=device, dtype=dtype)
    dtype = valid_ratios.dtype
    valid_ratios = valid_ratios.to(reference.compute_dtype(valid_ratios))  # rounded once, at the end
    points = []
    for level, (H, W) in enumerate(shapes):
        y, x = (_centres(side, valid_ratios) for side in (H, W))
        centres = torch.stack((x.expand(H, W), y[:, None].expand(H, W)), dim=-1)  # [H, W, 2]
        points.append(centres.reshape(1, H * W, 2) / valid_ratios[:, None, level])
    return (torch.cat(points, dim=1)[:, :, None] * valid_ratios[:, None]).to(dtype)  # [N, S, L, 2]


def _centres(side: Any, like: Tensor) -> Tensor:
    """Return the centres of so many pixels as fractions of them all, like a tensor; a trace has the side as a tensor.

    Divided by 1 where there is none.
    """
    least = side.clamp(min=1) if isinstance(side, Tensor) else max(side, 1)
    centres: Tensor = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / least
    return centres
