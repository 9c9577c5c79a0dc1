"""What RT-DETRv2 and D-FINE share: the points of all levels in one list, and "discrete" sampling.

That reads the pixel floor(location * size + 0.5), clamped to the map, where `deform_attn` reads floor(location * size)
with interpolation "nearest": the same pixel, once all references have moved by half a pixel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn import deformable_attention
from deform_attn.interop.sampling import Sampling, Shapes, locate, weights_asked_for

METHODS = ("default", "discrete")


def attend(
    module: Any,
    queries: Tensor,
    value: Tensor,
    reference_points: Tensor,
    spatial_shapes: Any,
    num_points: Sequence[int],
    padding_mask: Tensor | None,
    method: str,
    output_attentions: bool | None,
) -> tuple[Tensor, Tensor | None]:
    """Return all heads side by side, `[N, Q, C]`, and the weights `[N, Q, M, T]` if somebody asks for them."""
    offsets, logits = _offsets_and_logits(module, queries)
    weights = logits.softmax(-1) if weights_asked_for(module, output_attentions) else None
    discrete = method == "discrete"
    if discrete:
        # Without a path back: so their projection gets no gradient, rather than zeros, which an optimiser would decay.
        offsets, reference_points = offsets.detach(), _half_a_pixel_on(reference_points.detach(), spatial_shapes)
    heads = deformable_attention(
        value.unflatten(-1, (module.n_heads, -1)),  # [N, S, M, D]
        spatial_shapes,
        reference_points,
        offsets,
        logits,
        num_points=num_points,
        padding_mask=padding_mask,
        offset_scale=module.offset_scale,
        interpolation="nearest" if discrete else "bilinear",
        padding_mode="border" if discrete else "zeros",
    )
    return heads, weights


def look(
    module: Any, queries: Tensor, reference_points: Tensor, spatial_shapes: Any, num_points: Sequence[int]
) -> tuple[Sampling, Shapes]:
    """Return where `attend` looks, and the sizes of the maps."""
    offsets, logits = _offsets_and_logits(module, queries)
    return locate(spatial_shapes, reference_points, offsets, logits, num_points, module.offset_scale)


def reason_against_scales(scales: Tensor, num_points: Sequence[int], method: str) -> str | None:
    """Return why a module with these scales of its points, one a point, and this method is not one that we compute."""
    if method not in METHODS:
        return f"its sampling method is {method!r}, not one of {', '.join(METHODS)}"
    expected = [1 / P for P in num_points for _ in range(P)]
    # A model in bfloat16 holds them rounded. One on the meta device holds nothing yet.
    if not scales.is_meta and not torch.allclose(scales.double().cpu(), torch.tensor(expected).double(), rtol=2**-8):
        return "its scales of the points are not 1 / the points of their level"
    return None


def _offsets_and_logits(module: Any, queries: Tensor) -> tuple[Tensor, Tensor]:
    offsets = module.sampling_offsets(queries).unflatten(-1, (module.n_heads, -1, 2))  # [N, Q, M, T, 2]
    return offsets, module.attention_weights(queries).unflatten(-1, (module.n_heads, -1))  # [N, Q, M, T]


def _half_a_pixel_on(references: Tensor, spatial_shapes: Any) -> Tensor:
    """Return `references [N, Q, L or 1, 2 or 4]` half a pixel of their level to the right and down."""
    pairs = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    references = references.to(torch.promote_types(references.dtype, torch.float32))
    half = 0.5 / references.new_tensor([(max(W, 1), max(H, 1)) for H, W in pairs])  # [L, 2]
    return torch.cat((references[..., :2] + half, references[..., 2:].expand(-1, -1, len(pairs), -1)), dim=-1)
