"""The rule for OneFormer in transformers: Mask2Former's computation, with one more argument in its forward."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deform_attn.interop import mask2former
from deform_attn.interop.deformable_detr import ARGUMENTS, ATTRIBUTES
from deform_attn.interop.rules import Form, Rule
from deform_attn.interop.sampling import Sampling, Shapes


def forward(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Tensor | None = None,
    position_embeddings: Tensor | None = None,
    reference_points: Any = None,
    spatial_shapes: Tensor | None = None,
    level_start_index: Tensor | None = None,
    output_attentions: bool | None = False,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return `[N, Q, C]`, and the attention weights `[N, Q, M, L, P]` if somebody asks for them."""
    return mask2former.forward(
        module,
        hidden_states,
        attention_mask,
        encoder_hidden_states,
        position_embeddings=position_embeddings,
        reference_points=reference_points,
        spatial_shapes_list=spatial_shapes_list,
        output_attentions=output_attentions,
    )


def compute_sampling(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Tensor | None = None,
    position_embeddings: Tensor | None = None,
    reference_points: Any = None,
    spatial_shapes: Tensor | None = None,
    level_start_index: Tensor | None = None,
    output_attentions: bool | None = False,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
) -> tuple[Sampling, Shapes]:
    """Return where `forward` looks for the same arguments, and the sizes of the maps."""
    return mask2former.compute_sampling(
        module,
        hidden_states,
        position_embeddings=position_embeddings,
        reference_points=reference_points,
        spatial_shapes_list=spatial_shapes_list,
    )


FORM: Form = Form(ATTRIBUTES, (*ARGUMENTS, "position_embeddings"), forward, compute_sampling)
RULE: Rule = Rule("oneformer", "OneFormerPixelDecoderEncoderMultiscaleDeformableAttention", FORM)
