"""The rule for OmDet-Turbo in transformers, whose attention has the form of Deformable DETR's.

Its decoder is told whether somebody wants the weights; its layers do not tell their attention.
"""

from deform_attn.interop.deformable_detr import FORM
from deform_attn.interop.rules import Rule

RULE: Rule = Rule("omdet_turbo", "OmDetTurboMultiscaleDeformableAttention", FORM, ("OmDetTurboDecoder",))
