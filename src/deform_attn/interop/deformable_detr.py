"""The rule for Deformable DETR in transformers, and the form of attention that nine more families share with it.

The module adds a position embedding to the queries, masks by what is valid, and gives every level the same points.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deform_attn import deformable_attention
from deform_attn.interop.rules import Form, Rule
from deform_attn.interop.sampling import Sampling, Shapes, locate, padding, sizes, weights_asked_for


def forward(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    position_embeddings: Tensor | None = None,
    reference_points: Tensor | None = None,
    spatial_shapes: Tensor | None = None,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
    level_start_index: Tensor | None = None,
    output_attentions: bool | None = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return `[N, Q, C]`, and the attention weights `[N, Q, M, L, P]` if somebody asks for them."""
    shapes = sizes(spatial_shapes_list, spatial_shapes)
    queries = hidden_states if position_embeddings is None else hidden_states + position_embeddings
    return attend(
        module, queries, encoder_hidden_states, reference_points, shapes, padding(attention_mask), output_attentions
    )


def answering_forward(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    position_embeddings: Tensor | None = None,
    reference_points: Tensor | None = None,
    spatial_shapes: Tensor | None = None,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
    level_start_index: Tensor | None = None,
    output_attentions: bool | None = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return what `forward` does, the attention weights in any case."""
    shapes = sizes(spatial_shapes_list, spatial_shapes)
    queries = hidden_states if position_embeddings is None else hidden_states + position_embeddings
    return attend(module, queries, encoder_hidden_states, reference_points, shapes, padding(attention_mask), True)


def compute_sampling(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    position_embeddings: Tensor | None = None,
    reference_points: Tensor | None = None,
    spatial_shapes: Tensor | None = None,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
    level_start_index: Tensor | None = None,
    output_attentions: bool | None = False,
    **kwargs: Any,
) -> tuple[Sampling, Shapes]:
    """Return where `forward` looks for the same arguments, and the sizes of the maps."""
    queries = hidden_states if position_embeddings is None else hidden_states + position_embeddings
    return look(module, queries, reference_points, sizes(spatial_shapes_list, spatial_shapes))


def attend(
    module: Any,
    queries: Tensor,
    features: Any,
    reference_points: Any,
    spatial_shapes: Any,
    padding_mask: Tensor | None,
    output_attentions: bool | None,
) -> tuple[Tensor, Tensor | None]:
    """Return what a module with the four projections computes from its arguments in our terms."""
    offsets, logits = _offsets_and_logits(module, queries)
    value = module.value_proj(features).unflatten(-1, (module.n_heads, -1))  # [N, S, M, D]
    heads = deformable_attention(value, spatial_shapes, reference_points, offsets, logits, padding_mask=padding_mask)
    weights = None
    if weights_asked_for(module, output_attentions):
        weights = logits.softmax(-1).unflatten(-1, (module.n_levels, module.n_points))  # [N, Q, M, L, P]
    return module.output_proj(heads), weights


def look(module: Any, queries: Tensor, reference_points: Any, spatial_shapes: Any) -> tuple[Sampling, Shapes]:
    """Return where `attend` looks, and the sizes of the maps."""
    offsets, logits = _offsets_and_logits(module, queries)
    points = [module.n_points] * module.n_levels
    return locate(spatial_shapes, reference_points, offsets.flatten(3, 4), logits, points)


def _offsets_and_logits(module: Any, queries: Tensor) -> tuple[Tensor, Tensor]:
    M, L, P = module.n_heads, module.n_levels, module.n_points
    offsets = module.sampling_offsets(queries).unflatten(-1, (M, L, P, 2))  # [N, Q, M, L, P, 2]
    return offsets, module.attention_weights(queries).unflatten(-1, (M, L * P))  # [N, Q, M, T]


ATTRIBUTES = ("n_heads", "n_levels", "n_points", "sampling_offsets", "attention_weights", "value_proj", "output_proj")
ARGUMENTS = ("hidden_states", "attention_mask", "encoder_hidden_states", "reference_points", "spatial_shapes_list")

FORM: Form = Form(ATTRIBUTES, (*ARGUMENTS, "position_embeddings"), forward, compute_sampling)
# For models that pass the weights on without telling the module whether anybody wants them.
ANSWERING_FORM: Form = Form(FORM.attributes, FORM.arguments, answering_forward, compute_sampling)
RULE: Rule = Rule("deformable_detr", "DeformableDetrMultiscaleDeformableAttention", FORM)
