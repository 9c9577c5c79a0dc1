"""The rule for Deformable DETR in transformers, and the form of attention that nine more families share with it.

The module adds a position embedding to the queries, masks by what is valid, and gives every level the same points.
"""

from typing import Any

from deform_attn.interop.rules import Form, Layout, Rule, has_hooks, has_other_forward

OP = "MultiScaleDeformableAttention"  # of transformers: what the module calls at its locations, without parameters

ARGUMENTS = (
    "hidden_states",
    "attention_mask",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "position_embeddings",
    "reference_points",
    "spatial_shapes",
    "spatial_shapes_list",
    "level_start_index",
    "output_attentions",
)
ATTRIBUTES = ("n_heads", "n_levels", "n_points", "sampling_offsets", "attention_weights", "value_proj", "output_proj")


def layout(module: Any) -> Layout:
    """Return how a module with the same points on every level looks."""
    return Layout([module.n_points] * module.n_levels)


def _reason_against(module: Any) -> str | None:
    if type(module.attn).__name__ != OP or has_other_forward(module.attn):
        return f"the op inside, attn, is not the {OP} of transformers"
    return "the op inside, attn, has hooks, which would not be called" if has_hooks(module.attn) else None


FORM: Form = Form(ARGUMENTS, (*ATTRIBUTES, "attn"), layout, reason_against=_reason_against)
RULE: Rule = Rule("deformable_detr", "DeformableDetrMultiscaleDeformableAttention", FORM)
