"""The rule for D-FINE in transformers: points that differ by level, and no projection of values or output."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deform_attn.interop.deformable_detr import ARGUMENTS
from deform_attn.interop.flat_points import attend, look, reason_against_scales
from deform_attn.interop.rules import Form, Rule
from deform_attn.interop.sampling import Sampling, Shapes, padding, sizes

_CORE = "multi_scale_deformable_attention_v2"


def forward(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    reference_points: Any = None,
    encoder_hidden_states: Any = None,
    spatial_shapes: Tensor | None = None,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
    output_attentions: bool | None = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return `[N, Q, C]`, and the attention weights `[N, Q, M, T]` if somebody asks for them."""
    return attend(
        module,
        hidden_states,
        encoder_hidden_states,
        reference_points,
        sizes(spatial_shapes_list, spatial_shapes),
        module.num_points_list,
        padding(attention_mask),
        module.decoder_method,
        output_attentions,
    )


def compute_sampling(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    reference_points: Any = None,
    encoder_hidden_states: Any = None,
    spatial_shapes: Tensor | None = None,
    spatial_shapes_list: Sequence[tuple[int, int]] | None = None,
    output_attentions: bool | None = False,
    **kwargs: Any,
) -> tuple[Sampling, Shapes]:
    """Return where `forward` looks for the same arguments, and the sizes of the maps."""
    shapes = sizes(spatial_shapes_list, spatial_shapes)
    return look(module, hidden_states, reference_points, shapes, module.num_points_list)


def _reason_against(module: Any) -> str | None:
    # The class keeps its op as an attribute, which somebody may have replaced.
    if getattr(module.ms_deformable_attn_core, "__name__", None) != _CORE:
        return f"its ms_deformable_attn_core is not {_CORE}"
    return reason_against_scales(module.num_points_scale, module.num_points_list, module.decoder_method)


QUERY_SIDE = ("n_heads", "offset_scale", "sampling_offsets", "attention_weights")
ATTRIBUTES = (*QUERY_SIDE, "num_points_list", "num_points_scale", "decoder_method", "ms_deformable_attn_core")
FORM: Form = Form(ATTRIBUTES, ARGUMENTS, forward, compute_sampling, _reason_against)
RULE: Rule = Rule("d_fine", "DFineMultiscaleDeformableAttention", FORM)
