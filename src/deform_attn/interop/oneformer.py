"""The rule for OneFormer in transformers: Mask2Former's computation, with one more argument in its forward."""

from deform_attn.interop import mask2former
from deform_attn.interop.rules import Form, Rule

ARGUMENTS = (
    "hidden_states",
    "attention_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "position_embeddings",
    "reference_points",
    "spatial_shapes",
    "level_start_index",
    "output_attentions",
    "spatial_shapes_list",
)
FORM: Form = Form(ARGUMENTS, mask2former.FORM.attributes, mask2former.FORM.layout, padding_is_true=True)
RULE: Rule = Rule("oneformer", "OneFormerPixelDecoderEncoderMultiscaleDeformableAttention", FORM)
