"""Sampling: the sizes of the maps, and where a call looks on them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]
Sampling = tuple[Tensor, Tensor]


def sizes(spatial_shapes_list: Any, spatial_shapes: Tensor | None) -> Any:
    """Return the sizes (H, W) of the maps; a list needs no look into a tensor and goes first."""
    if spatial_shapes_list is None:
        return spatial_shapes
    pairs = [(H, W) for H, W in spatial_shapes_list]
    if pairs and isinstance(pairs[0][0], Tensor):
        return [(H.item(), W.item()) for H, W in pairs]
    return pairs


def locate(
    spatial_shapes: Any,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    num_points: Sequence[int],
    offset_scale: float = 0.5,
) -> tuple[Sampling, Shapes]:
    """Return where `deform_attn.deformable_attention` looks, each point's weight, and the sizes of the maps.

    `reference_points [N, Q, L or 1, 2 or 4]`, `sampling_offsets [N, Q, M, T, 2]`, `attention_logits [N, Q, M, T]`.
    As in `MultiScaleDeformableAttention`, locations are `[N, Q, M, L, P, 2]`, or flat if the levels' counts differ.
    """
    pairs = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    shapes = tuple((int(H), int(W)) for H, W in pairs)
    dtype = torch.promote_types(sampling_offsets.dtype, torch.float32)
    references = reference_points.to(dtype)[:, :, None].expand(-1, -1, -1, len(shapes), -1)  # [N, Q, 1, L, 2 or 4]
    counts = torch.tensor(num_points, device=references.device)
    references = references.repeat_interleave(counts, dim=3)  # [N, Q, 1, T, 2 or 4]
    if references.shape[-1] == 2:
        size = references.new_tensor([(W, H) for H, W in shapes]).repeat_interleave(counts, dim=0)  # [T, 2]
        steps = sampling_offsets.to(dtype) / size
    else:
        per_point = counts.repeat_interleave(counts)[:, None]  # [T, 1]
        steps = sampling_offsets.to(dtype) / per_point * references[..., 2:] * offset_scale
    locations, weights = references[..., :2] + steps, attention_logits.to(dtype).softmax(-1)
    if len(set(num_points)) == 1:
        grid = (len(shapes), num_points[0])
        locations, weights = locations.unflatten(3, grid), weights.unflatten(3, grid)
    return (locations, weights), shapes
