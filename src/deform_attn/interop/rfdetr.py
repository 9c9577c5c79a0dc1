"""RF-DETR: `MSDeformAttn` of the rfdetr package and of LW-DETR, the original's with a switch for export.

Its decoder passes the sizes of the maps as ints, too, which need no look into a tensor. True in its mask is padding.
"""

from typing import Any

from torch import Tensor

from deform_attn.interop import fused, original
from deform_attn.interop.fused import Call
from deform_attn.interop.structure import Structure
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs


def _reason_against_export(module: Any) -> str | None:
    return "its export() was called, after which it computes for exporters" if module._export else None


STRUCTURE = Structure(
    family="rfdetr",
    class_name="MSDeformAttn",
    marks=("input_flatten", "_export"),
    others_marks=(),
    arguments=(*original.STRUCTURE.arguments, "input_spatial_shapes_hw"),
    attributes=original.STRUCTURE.attributes,
    optional=("input_spatial_shapes_hw",),  # LW-DETR has none
    reason_against_state=_reason_against_export,
)


def forward(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return `[N, Q, C]` for the arguments of the stock forward."""
    return fused.attend(module, *_read(module, *args, **kwargs))


def compute_sampling(module: Any, *args: Any, **kwargs: Any) -> tuple[Sampling, Pairs, tuple[int, ...]]:
    """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each."""
    call, _, _ = _read(module, *args, **kwargs)
    return fused.sampling(module, call)


def _read(
    module: Any,
    query: Tensor,
    reference_points: Tensor,
    input_flatten: Tensor,
    input_spatial_shapes: Tensor,
    input_level_start_index: Tensor,
    input_padding_mask: Tensor | None = None,
    input_spatial_shapes_hw: Any = None,
) -> tuple[Call, Tensor, Tensor | None]:
    sizes = input_spatial_shapes if input_spatial_shapes_hw is None else fused.pairs_of(input_spatial_shapes_hw)
    call = Call(query, reference_points, sizes, module.n_heads, [module.n_points] * module.n_levels)
    return call, input_flatten, input_padding_mask
