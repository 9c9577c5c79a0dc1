"""The rule for RT-DETR in transformers, whose attention has the form of Deformable DETR's."""

from deform_attn.interop.deformable_detr import FORM
from deform_attn.interop.rules import Rule

RULE: Rule = Rule("rt_detr", "RTDetrMultiscaleDeformableAttention", FORM)
