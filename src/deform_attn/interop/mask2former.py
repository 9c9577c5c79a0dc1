"""The rule for Mask2Former in transformers: Deformable DETR's computation with a mask of padding."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deform_attn.interop.deformable_detr import ARGUMENTS, ATTRIBUTES, attend, look
from deform_attn.interop.rules import Form, Rule
from deform_attn.interop.sampling import Sampling, Shapes, sizes


def forward(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Tensor | None = None,
    position_embeddings: Tensor | None = None,
    reference_points: Any = None,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
    level_start_index: Tensor | None = None,
    output_attentions: bool | None = False,
) -> tuple[Tensor, Tensor | None]:
    """Return `[N, Q, C]`, and the attention weights `[N, Q, M, L, P]` if somebody asks for them."""
    queries = hidden_states if position_embeddings is None else hidden_states + position_embeddings
    shapes = sizes(spatial_shapes_list, None)
    return attend(module, queries, encoder_hidden_states, reference_points, shapes, attention_mask, output_attentions)


def compute_sampling(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Tensor | None = None,
    position_embeddings: Tensor | None = None,
    reference_points: Any = None,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
    level_start_index: Tensor | None = None,
    output_attentions: bool | None = False,
) -> tuple[Sampling, Shapes]:
    """Return where `forward` looks for the same arguments, and the sizes of the maps."""
    queries = hidden_states if position_embeddings is None else hidden_states + position_embeddings
    return look(module, queries, reference_points, sizes(spatial_shapes_list, None))


FORM: Form = Form(ATTRIBUTES, (*ARGUMENTS, "position_embeddings"), forward, compute_sampling)
RULE: Rule = Rule("mask2former", "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention", FORM)
