"""The rule for PP-DocLayout v4 in transformers, whose attention has the form of Deformable DETR's."""

from deform_attn.interop.deformable_detr import FORM
from deform_attn.interop.rules import Rule

RULE: Rule = Rule("pp_doclayout_v4", "PPDocLayoutV4MultiscaleDeformableAttention", FORM)
