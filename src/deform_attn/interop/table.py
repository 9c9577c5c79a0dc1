"""The table of rules: one line a family."""

from deform_attn.interop import (
    d_fine,
    deformable_detr,
    deimv2,
    grounding_dino,
    lw_detr,
    mask2former,
    mm_grounding_dino,
    omdet_turbo,
    oneformer,
    pp_doclayout_v2,
    pp_doclayout_v3,
    pp_doclayout_v4,
    rf_detr,
    rt_detr,
    rt_detr_v2,
)
from deform_attn.interop.rules import Rule

RULES: tuple[Rule, ...] = (
    deformable_detr.RULE,
    rt_detr.RULE,
    rt_detr_v2.RULE,
    d_fine.RULE,
    deimv2.RULE,
    grounding_dino.RULE,
    mm_grounding_dino.RULE,
    omdet_turbo.RULE,
    rf_detr.RULE,
    lw_detr.RULE,
    pp_doclayout_v2.RULE,
    pp_doclayout_v3.RULE,
    pp_doclayout_v4.RULE,
    mask2former.RULE,
    oneformer.RULE,
)
