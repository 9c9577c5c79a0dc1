"""mmcv: `MultiScaleDeformableAttention` of mmcv, which mmdetection uses, too.

Queries lie along the first axis unless it is `batch_first`, their positions are added to the queries alone, and the
output comes with dropout and the residual. True in its mask is padding. mmcv rounds coordinates to the dtype of value;
here they stay float32.
"""

from typing import Any

from torch import Tensor

from deform_attn.interop import fused
from deform_attn.interop.fused import Call
from deform_attn.interop.structure import Structure
from deform_attn.messages import fail
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs

ATTRIBUTES = (
    "batch_first",
    "num_heads",
    "num_levels",
    "num_points",
    "sampling_offsets",
    "attention_weights",
    "value_proj",
    "output_proj",
)

STRUCTURE = Structure(
    family="mmcv",
    class_name="MultiScaleDeformableAttention",
    marks=("key_padding_mask", "embed_dims"),
    others_marks=("embed_dim",),
    arguments=(
        "query",
        "key",
        "value",
        "identity",
        "query_pos",
        "key_padding_mask",
        "reference_points",
        "spatial_shapes",
        "level_start_index",
    ),
    attributes=(*ATTRIBUTES, "dropout"),
)


def forward(
    module: Any,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    identity: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Return `[Q, N, C]`, or `[N, Q, C]` if the module is `batch_first`, for the arguments of the stock forward.

    `identity`, in older code `residual`, is added to the output; without it the query is, and without `value` the query
    is read. Neither has the query's positions.
    """
    identity = identity_of(identity, kwargs.pop("residual", None))
    output: Tensor = module.dropout(attend(module, query, key, value, *args, **kwargs))
    return output + (query if identity is None else identity)


def identity_of(identity: Tensor | None, residual: Tensor | None) -> Tensor | None:
    """Return `identity` under whichever of its names it came."""
    if identity is not None and residual is not None:
        fail("residual", "one of identity and residual", "both", "Leave out residual.", TypeError)
    return residual if identity is None else identity


def compute_sampling(
    module: Any,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    identity: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Sampling, Pairs, tuple[int, ...]]:
    """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each."""
    return sampling(module, query, key, value, *args, **kwargs)


def attend(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return the projected output, for the arguments of the stock forward without `identity`."""
    output = fused.attend(module, *_read(module, *args, **kwargs))  # [N, Q, C]
    return output if module.batch_first else output.transpose(0, 1)  # [Q, N, C]


def sampling(module: Any, *args: Any, **kwargs: Any) -> tuple[Sampling, Pairs, tuple[int, ...]]:
    """Return where `attend` looks for the same arguments, the sizes of the maps, and the points on each."""
    call, _, _ = _read(module, *args, **kwargs)
    return fused.sampling(module, call)


def _read(
    module: Any,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    query_pos: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    reference_points: Tensor | None = None,
    spatial_shapes: Tensor | None = None,
    level_start_index: Tensor | None = None,
    **others: Any,
) -> tuple[Call, Tensor, Tensor | None]:
    features = query if value is None else value
    queries = query if query_pos is None else query + query_pos
    if not module.batch_first:
        queries, features = queries.transpose(0, 1), features.transpose(0, 1)  # [N, Q, C], [N, S, C]
    points = [module.num_points] * module.num_levels
    if reference_points is None or spatial_shapes is None:
        missing = "reference_points" if reference_points is None else "spatial_shapes"
        raise TypeError(f"{missing}: expected a tensor, got None. Pass what the encoder or decoder passes.")
    return Call(queries, reference_points, spatial_shapes, module.num_heads, points), features, key_padding_mask
