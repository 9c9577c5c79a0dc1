"""The rule for DEIMv2 in transformers, whose attention has the form of D-FINE's."""

from deform_attn.interop.d_fine import FORM
from deform_attn.interop.rules import Rule

RULE: Rule = Rule("deimv2", "Deimv2MultiscaleDeformableAttention", FORM)
