"""The rule for RT-DETRv2 in transformers: one list of points for all levels, bilinear or "discrete" sampling."""

from typing import Any

from deform_attn.interop.deformable_detr import ARGUMENTS
from deform_attn.interop.point_scales import reason_against_scales
from deform_attn.interop.rules import Form, Layout, Rule

QUERY_SIDE = ("n_heads", "offset_scale", "sampling_offsets", "attention_weights")
ATTRIBUTES = (*QUERY_SIDE, "n_points_list", "n_points_scale", "method", "value_proj", "output_proj")


def _layout(module: Any) -> Layout:
    return Layout(module.n_points_list, module.offset_scale, module.method)


def _reason_against(module: Any) -> str | None:
    return reason_against_scales(module.n_points_scale, _layout(module))


FORM: Form = Form(ARGUMENTS, ATTRIBUTES, _layout, flat_weights=True, reason_against=_reason_against)
RULE: Rule = Rule("rt_detr_v2", "RTDetrV2MultiscaleDeformableAttention", FORM)
