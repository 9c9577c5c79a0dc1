"""The rule for Mask2Former in transformers: Deformable DETR's computation with a mask of padding."""

from deform_attn.interop.deformable_detr import ARGUMENTS, ATTRIBUTES, layout
from deform_attn.interop.rules import Form, Rule

FORM: Form = Form(
    tuple(name for name in ARGUMENTS if name != "spatial_shapes"), ATTRIBUTES, layout, padding_is_true=True
)
RULE: Rule = Rule("mask2former", "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention", FORM)
