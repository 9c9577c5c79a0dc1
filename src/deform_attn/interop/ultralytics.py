"""Ultralytics: `MSDeformAttn` of the ultralytics package, whose references are boxes or points for all levels.

True in its mask is padding.
"""

from typing import Any

from torch import Tensor

from deform_attn.interop import fused, original
from deform_attn.interop.fused import Call
from deform_attn.interop.structure import Structure
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs

STRUCTURE = Structure(
    family="ultralytics",
    class_name="MSDeformAttn",
    marks=("refer_bbox",),
    others_marks=("input_flatten",),
    arguments=("query", "refer_bbox", "value", "value_shapes", "value_mask"),
    attributes=original.STRUCTURE.attributes,
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
    refer_bbox: Tensor,
    value: Tensor,
    value_shapes: Any,
    value_mask: Tensor | None = None,
) -> tuple[Call, Tensor, Tensor | None]:
    points = [module.n_points] * module.n_levels
    return Call(query, refer_bbox, fused.pairs_of(value_shapes), module.n_heads, points), value, value_mask
