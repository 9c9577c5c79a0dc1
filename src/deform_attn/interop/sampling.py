"""What the forms share: sizes of maps, where a call looks, and whether somebody asks for its attention weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Shapes = tuple[tuple[int, int], ...]
Sampling = tuple[Tensor, Tensor]


def sizes(spatial_shapes_list: Sequence[Any] | None, spatial_shapes: Tensor | None) -> Any:
    """Return the sizes (H, W) of the maps; a list needs no look into a tensor and goes first."""
    return spatial_shapes if spatial_shapes_list is None else [(H, W) for H, W in spatial_shapes_list]


def weights_asked_for(module: nn.Module, output_attentions: bool | None) -> bool:
    """Return whether somebody will look at the attention weights that `module` is about to return.

    That is a caller that says so, or a forward hook. The hooks by which transformers captures outputs stay on a model
    for good once they were needed; these ask only while a capture of attentions is on. A compiler drops what nobody
    uses, so that under torch.compile the answer is yes.
    """
    if output_attentions or torch.compiler.is_compiling():
        return True
    hooks = (*module._forward_hooks.values(), *torch.nn.modules.module._global_forward_hooks.values())
    return any(_asks(getattr(hook, "func", hook)) for hook in hooks)


def _asks(hook: Any) -> bool:
    origin = getattr(hook, "__module__", None)
    if origin == "deform_attn.recording":  # which computes them itself
        return False
    if origin != "transformers.utils.output_capturing":
        return True
    captured = hook.__globals__["_active_collector"].get()  # None, or a list for each output that is captured
    return captured is not None and any(name.endswith("attentions") for name in captured)


def padding(attention_mask: Tensor | None) -> Tensor | None:
    """Return the mask of padding for a mask of what is valid."""
    return None if attention_mask is None else ~attention_mask


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
