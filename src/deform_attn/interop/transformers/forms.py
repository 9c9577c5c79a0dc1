"""The forms of deformable attention in transformers, each of which several families may share.

`DEFORMABLE_DETR` adds a position embedding to the queries, masks by what is valid, and gives every level the same
points. `MASK2FORMER` and `ONEFORMER` mask by what is padding. `RT_DETR_V2` has one list of points for all levels and
bilinear or "discrete" sampling. `D_FINE` has no projections of value and output.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from deform_attn.interop.scales import reason_against_scales
from deform_attn.interop.structure import has_hooks, has_other_forward
from deform_attn.interop.transformers.rules import OUTPUT_ATTENTIONS, Form, Layout

_OP = "MultiScaleDeformableAttention"  # what the module calls at its locations, without parameters
_D_FINE_OP = "multi_scale_deformable_attention_v2"
_METHODS = ("default", "discrete")


def _same_points(module: Any) -> Layout:
    return Layout([module.n_points] * module.n_levels)


def _reason_against_op(module: Any) -> str | None:
    if type(module.attn).__name__ != _OP or has_other_forward(module.attn):
        return f"the op inside, attn, is not the {_OP} of transformers"
    return "the op inside, attn, has hooks, which would not be called" if has_hooks(module.attn) else None


DEFORMABLE_DETR: Form = Form(
    arguments=(
        "hidden_states",
        "attention_mask",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "position_embeddings",
        "reference_points",
        "spatial_shapes",
        "spatial_shapes_list",
        "level_start_index",
        OUTPUT_ATTENTIONS,
    ),
    attributes=(
        "n_heads",
        "n_levels",
        "n_points",
        "sampling_offsets",
        "attention_weights",
        "value_proj",
        "output_proj",
        "attn",
    ),
    layout=_same_points,
    reason_against=_reason_against_op,
)

_MASKED = replace(
    DEFORMABLE_DETR, attributes=DEFORMABLE_DETR.attributes[:-1], padding_is_true=True, reason_against=lambda _: None
)

MASK2FORMER: Form = replace(
    _MASKED, arguments=tuple(name for name in DEFORMABLE_DETR.arguments if name != "spatial_shapes")
)

# The same arguments as Deformable DETR's, the last three in another order; in transformers 5.0 without the last one.
ONEFORMER: Form = replace(
    _MASKED,
    arguments=(*DEFORMABLE_DETR.arguments[:7], "level_start_index", OUTPUT_ATTENTIONS, "spatial_shapes_list"),
    optional=(OUTPUT_ATTENTIONS, "spatial_shapes_list"),
)


def _listed_points(module: Any) -> Layout:
    return Layout(module.n_points_list, module.offset_scale, module.method)


RT_DETR_V2: Form = Form(
    arguments=DEFORMABLE_DETR.arguments,
    attributes=(
        "n_heads",
        "offset_scale",
        "sampling_offsets",
        "attention_weights",
        "n_points_list",
        "n_points_scale",
        "method",
        "value_proj",
        "output_proj",
    ),
    layout=_listed_points,
    flat_weights=True,
    reason_against=lambda module: _reason_against_points(module.n_points_scale, _listed_points(module)),
)


def _d_fine_points(module: Any) -> Layout:
    return Layout(module.num_points_list, module.offset_scale, module.decoder_method)


def _reason_against_d_fine(module: Any) -> str | None:
    # The class keeps its op as an attribute, which somebody may have replaced.
    if getattr(module.ms_deformable_attn_core, "__name__", None) != _D_FINE_OP:
        return f"its ms_deformable_attn_core is not {_D_FINE_OP}"
    return _reason_against_points(module.num_points_scale, _d_fine_points(module))


D_FINE: Form = Form(
    arguments=(
        "hidden_states",
        "attention_mask",
        "reference_points",
        "encoder_hidden_states",
        "spatial_shapes",
        "spatial_shapes_list",
    ),
    attributes=(
        "n_heads",
        "offset_scale",
        "sampling_offsets",
        "attention_weights",
        "num_points_list",
        "num_points_scale",
        "decoder_method",
        "ms_deformable_attn_core",
    ),
    layout=_d_fine_points,
    flat_weights=True,
    reason_against=_reason_against_d_fine,
)


def _reason_against_points(scales: Tensor, layout: Layout) -> str | None:
    if layout.method not in _METHODS:
        return f"its sampling method is {layout.method!r}, not one of {', '.join(_METHODS)}"
    return reason_against_scales(scales, layout.num_points)
