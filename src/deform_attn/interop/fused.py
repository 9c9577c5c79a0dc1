"""Fused: a call of a stock module in our terms, what it computes through the fused op, and where it looks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn import tracing
from deform_attn.functional import deformable_attention
from deform_attn.recording import Sampling, sampling_of
from deform_attn.shape_checks import Pairs, spatial_shapes_of


class Call(NamedTuple):
    """A call of a stock module in our terms, with the module's numbers of heads and of points on each level."""

    queries: Tensor  # [N, Q, C], with their position embeddings
    reference_points: Tensor  # [N, Q, L or 1, 2 or 4]; 1 for N or Q stands for all
    spatial_shapes: Any
    num_heads: int
    num_points: Sequence[int]
    offset_scale: float = 0.5


def attend(module: Any, call: Call, features: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Return `[N, Q, C]` of a module with projections of value and output.

    `features [N, S, C]` are projected before the pixels of `padding_mask [N or 1, S]` (True = padding) count as 0, so
    that the bias of the projection is not read there.
    """
    value = module.value_proj(features).unflatten(-1, (call.num_heads, -1))  # [N, S, M, D]
    output: Tensor = module.output_proj(read(call, value, *offsets_and_logits(module, call), padding_mask))
    return output


def read(call: Call, value: Tensor, offsets: Tensor, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """Return what each head found in `value [N, S, M, D]`, `[N, Q, M*D]`."""
    if isinstance(padding_mask, Tensor) and padding_mask.ndim == 2:
        if is_tracing():
            padding_mask = tracing.expanded(padding_mask, value.shape[0])
        elif padding_mask.shape[0] == 1:
            padding_mask = padding_mask.expand(value.shape[0], -1)
    return deformable_attention(
        value,
        call.spatial_shapes,
        _for_each_query(call),
        offsets,
        logits,
        num_points=call.num_points,
        padding_mask=padding_mask,
        offset_scale=call.offset_scale,
    )


def offsets_and_logits(module: Any, call: Call) -> tuple[Tensor, Tensor]:
    """Return the offsets `[N, Q, M, T, 2]` and the logits `[N, Q, M, T]` of a call's queries."""
    M = call.num_heads
    offsets = module.sampling_offsets(call.queries).unflatten(-1, (M, -1, 2))  # [N, Q, M, T, 2]
    return offsets, module.attention_weights(call.queries).unflatten(-1, (M, -1))  # [N, Q, M, T]


def sampling(module: Any, call: Call) -> tuple[Sampling, Pairs, tuple[int, ...]]:
    """Return where a module looks in a call, the sizes of the maps, and the points on each."""
    shapes, num_points = spatial_shapes_of(call.spatial_shapes), tuple(call.num_points)
    points = (_for_each_query(call), *offsets_and_logits(module, call))
    return sampling_of(shapes, *points, num_points, call.offset_scale), shapes, num_points


def pairs_of(sizes: Any) -> Any:
    """Return a list of sizes (H, W) as tuples, and a tensor as it is: its numbers may lie on another device."""
    return sizes if isinstance(sizes, Tensor) else tuple((H, W) for H, W in sizes)


def _for_each_query(call: Call) -> Tensor:
    """Return the references with one entry for each image and query; stock modules broadcast those with one for all."""
    references = call.reference_points
    if not isinstance(references, Tensor) or references.ndim < 2:
        return references  # for the op to refuse
    if is_tracing():
        return tracing.expanded(references, *call.queries.shape[:2])
    if 1 not in references.shape[:2]:
        return references
    sizes = [n if size == 1 else -1 for n, size in zip(call.queries.shape[:2], references.shape[:2], strict=True)]
    return references.expand(*sizes, *references.shape[2:])
