"""Original: `MSDeformAttn` of the authors' repository and its copies.

The copies in DINO, MaskDINO, Mask2Former and dinov3 compute the same; those in ViT-Adapter and in DEIMv2 project value
to another width by their `ratio`. True in their mask is padding.
"""

from typing import Any

from torch import Tensor

from deform_attn.interop import fused
from deform_attn.interop.fused import Call
from deform_attn.interop.structure import Structure, reason_against_core
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs


def _reason_against_core(module: Any) -> str | None:
    # DEIMv2 keeps its op as an attribute, which somebody may have replaced; the others import it.
    if not hasattr(module, "ms_deformable_attn_core"):
        return None
    return reason_against_core(module, "ms_deform_attn_core_pytorch")


STRUCTURE = Structure(
    family="original",
    class_name="MSDeformAttn",
    marks=("input_flatten",),
    others_marks=("_export",),
    arguments=(
        "query",
        "reference_points",
        "input_flatten",
        "input_spatial_shapes",
        "input_level_start_index",
        "input_padding_mask",
    ),
    attributes=(
        "n_heads",
        "n_levels",
        "n_points",
        "sampling_offsets",
        "attention_weights",
        "value_proj",
        "output_proj",
    ),
    reason_against_state=_reason_against_core,
)


def forward(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return `[N, Q, C]` for the arguments of the stock forward."""
    return fused.attend(module, *_read(module, *args, **kwargs))


def compute_sampling(module: Any, *args: Any, **kwargs: Any) -> tuple[Sampling, Pairs, tuple[int, ...]]:
    """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each."""
    call, _, _ = _read(module, *args, **kwargs)
    return fused.sampling(module, call)


def _read(
    module: Any,
    query: Tensor,
    reference_points: Tensor,
    input_flatten: Tensor,
    input_spatial_shapes: Tensor,
    input_level_start_index: Tensor,
    input_padding_mask: Tensor | None = None,
) -> tuple[Call, Tensor, Tensor | None]:
    points = [module.n_points] * module.n_levels
    call = Call(query, reference_points, input_spatial_shapes, module.n_heads, points)
    return call, input_flatten, input_padding_mask
