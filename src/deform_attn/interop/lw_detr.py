"""The rule for LW-DETR in transformers, whose attention has the form of Deformable DETR's."""

from deform_attn.interop.deformable_detr import FORM
from deform_attn.interop.rules import Rule

RULE: Rule = Rule("lw_detr", "LwDetrMultiscaleDeformableAttention", FORM)
