"""The rule for PP-DocLayout v3 in transformers, whose attention has the form of Deformable DETR's."""

from deform_attn.interop.deformable_detr import FORM
from deform_attn.interop.rules import Rule

RULE: Rule = Rule("pp_doclayout_v3", "PPDocLayoutV3MultiscaleDeformableAttention", FORM)
