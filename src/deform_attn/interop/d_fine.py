"""The rule for D-FINE in transformers: points that differ by level, and no projection of values or output."""

from typing import Any

from deform_attn.interop.point_scales import reason_against_scales
from deform_attn.interop.rules import Form, Layout, Rule

ARGUMENTS = (
    "hidden_states",
    "attention_mask",
    "reference_points",
    "encoder_hidden_states",
    "spatial_shapes",
    "spatial_shapes_list",
)
QUERY_SIDE = ("n_heads", "offset_scale", "sampling_offsets", "attention_weights")
ATTRIBUTES = (*QUERY_SIDE, "num_points_list", "num_points_scale", "decoder_method", "ms_deformable_attn_core")
_CORE = "multi_scale_deformable_attention_v2"


def _layout(module: Any) -> Layout:
    return Layout(module.num_points_list, module.offset_scale, module.decoder_method)


def _reason_against(module: Any) -> str | None:
    # The class keeps its op as an attribute, which somebody may have replaced.
    if getattr(module.ms_deformable_attn_core, "__name__", None) != _CORE:
        return f"its ms_deformable_attn_core is not {_CORE}"
    return reason_against_scales(module.num_points_scale, _layout(module))


FORM: Form = Form(ARGUMENTS, ATTRIBUTES, _layout, flat_weights=True, reason_against=_reason_against)
RULE: Rule = Rule("d_fine", "DFineMultiscaleDeformableAttention", FORM)
