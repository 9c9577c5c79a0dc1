"""RT-DETR: `MSDeformableAttention` of its repository, version 1 and version 2 (bilinear), which DEIMv2 has, too.

Version 2 may have another number of points on each level. True in the mask is what is valid.
"""

from typing import Any

from torch import Tensor

from deform_attn.interop import fused
from deform_attn.interop.fused import Call
from deform_attn.interop.scales import reason_against_scales
from deform_attn.interop.structure import Structure, reason_against_core
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs

CLASS_NAME = "MSDeformableAttention"
ARGUMENTS = ("query", "reference_points", "value", "value_spatial_shapes", "value_mask")


def reason_against_points(module: Any) -> str | None:
    """Return why a module with a list of points, one number a level, cannot be replaced, or None if it can."""
    if module.method != "default":
        # On maps that are not square these repositories read discrete points beyond the width, or beside the pixel.
        return f"its sampling method is {module.method!r}, which is not that of any other family; 'default' is known"
    if reason := reason_against_scales(module.num_points_scale, module.num_points_list):
        return reason
    return reason_against_core(module, "deformable_attention_core_func_v2")


def _reason_against_version(module: Any) -> str | None:
    if hasattr(module, "num_points_list"):
        return reason_against_points(module)
    return reason_against_core(module, "deformable_attention_core_func")


STRUCTURE = Structure(
    family="rtdetr",
    class_name=CLASS_NAME,
    marks=("value_spatial_shapes", "value_proj"),
    others_marks=(),
    arguments=ARGUMENTS,
    attributes=(
        "num_heads",
        "num_levels",
        "sampling_offsets",
        "attention_weights",
        "value_proj",
        "output_proj",
        "ms_deformable_attn_core",
    ),
    reason_against_state=_reason_against_version,
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
    value: Tensor,
    value_spatial_shapes: Any,
    value_mask: Tensor | None = None,
) -> tuple[Call, Tensor, Tensor | None]:
    if hasattr(module, "num_points_list"):
        points, scale = module.num_points_list, module.offset_scale
    else:
        points, scale = [module.num_points] * module.num_levels, 0.5
    call = Call(query, reference_points, fused.pairs_of(value_spatial_shapes), module.num_heads, points, scale)
    return call, value, None if value_mask is None else ~value_mask
