"""The rule for RT-DETRv2 in transformers: one list of points for all levels, bilinear or "discrete" sampling."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deform_attn.interop.deformable_detr import ARGUMENTS
from deform_attn.interop.flat_points import attend, look, reason_against_scales
from deform_attn.interop.rules import Form, Rule
from deform_attn.interop.sampling import Sampling, Shapes, padding, sizes


def forward(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Tensor | None = None,
    position_embeddings: Tensor | None = None,
    reference_points: Any = None,
    spatial_shapes: Tensor | None = None,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
    level_start_index: Tensor | None = None,
    output_attentions: bool | None = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return `[N, Q, C]`, and the attention weights `[N, Q, M, T]` if somebody asks for them."""
    queries = hidden_states if position_embeddings is None else hidden_states + position_embeddings
    heads, weights = attend(
        module,
        queries,
        module.value_proj(encoder_hidden_states),
        reference_points,
        sizes(spatial_shapes_list, spatial_shapes),
        module.n_points_list,
        padding(attention_mask),
        module.method,
        output_attentions,
    )
    return module.output_proj(heads), weights


def compute_sampling(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Tensor | None = None,
    position_embeddings: Tensor | None = None,
    reference_points: Any = None,
    spatial_shapes: Tensor | None = None,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
    level_start_index: Tensor | None = None,
    output_attentions: bool | None = False,
    **kwargs: Any,
) -> tuple[Sampling, Shapes]:
    """Return where `forward` looks for the same arguments, and the sizes of the maps."""
    queries = hidden_states if position_embeddings is None else hidden_states + position_embeddings
    return look(module, queries, reference_points, sizes(spatial_shapes_list, spatial_shapes), module.n_points_list)


def _reason_against(module: Any) -> str | None:
    return reason_against_scales(module.n_points_scale, module.n_points_list, module.method)


QUERY_SIDE = ("n_heads", "offset_scale", "sampling_offsets", "attention_weights")
ATTRIBUTES = (*QUERY_SIDE, "n_points_list", "n_points_scale", "method", "value_proj", "output_proj")
FORM: Form = Form(ATTRIBUTES, (*ARGUMENTS, "position_embeddings"), forward, compute_sampling, _reason_against)
RULE: Rule = Rule("rt_detr_v2", "RTDetrV2MultiscaleDeformableAttention", FORM)
