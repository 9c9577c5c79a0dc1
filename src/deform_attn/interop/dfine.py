"""D-FINE: `MSDeformableAttention` of D-FINE, DEIM and DEIMv2, without projections of value and output.

Its value is a list of maps, one a level, that the decoder has projected and masked.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn.interop import fused, rtdetr
from deform_attn.interop.fused import Call
from deform_attn.interop.structure import Structure
from deform_attn.interop.unprojected import unprojected
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs

STRUCTURE = Structure(
    family="dfine",
    class_name=rtdetr.CLASS_NAME,
    marks=("value_spatial_shapes", "num_points_list"),
    others_marks=("value_proj",),
    arguments=rtdetr.ARGUMENTS[:-1],
    attributes=(
        "num_heads",
        "num_points_list",
        "num_points_scale",
        "offset_scale",
        "method",
        "sampling_offsets",
        "attention_weights",
        "ms_deformable_attn_core",
    ),
    reason_against_state=rtdetr.reason_against_points,
)


def forward(
    module: Any, query: Tensor, reference_points: Tensor, value: Sequence[Tensor], value_spatial_shapes: Any
) -> Tensor:
    """Return `[N, Q, M*D]`; `value` has the maps of all levels, each `[N, M, D, H*W]`."""
    call = _read(module, query, reference_points, value_spatial_shapes)
    offsets, logits = fused.offsets_and_logits(module, call)
    maps, context = unprojected(torch.cat(tuple(value), dim=-1).permute(0, 3, 1, 2), logits, False)  # [N, S, M, D]
    with context:
        return fused.read(call, maps, offsets, logits)


def compute_sampling(
    module: Any, query: Tensor, reference_points: Tensor, value: Sequence[Tensor], value_spatial_shapes: Any
) -> tuple[Sampling, Pairs, tuple[int, ...]]:
    """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each."""
    return fused.sampling(module, _read(module, query, reference_points, value_spatial_shapes))


def _read(module: Any, query: Tensor, reference_points: Tensor, value_spatial_shapes: Any) -> Call:
    sizes = fused.pairs_of(value_spatial_shapes)
    return Call(query, reference_points, sizes, module.num_heads, module.num_points_list, module.offset_scale)
