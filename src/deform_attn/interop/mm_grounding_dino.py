"""The rule for MM Grounding DINO in transformers, whose attention has the form of Deformable DETR's.

Its encoder and decoder are told whether somebody wants the weights; the encoder does not tell its attention.
"""

from deform_attn.interop.deformable_detr import FORM
from deform_attn.interop.rules import Rule

TELLERS = ("MMGroundingDinoEncoder", "MMGroundingDinoDecoder")
RULE: Rule = Rule("mm_grounding_dino", "MMGroundingDinoMultiscaleDeformableAttention", FORM, TELLERS)
