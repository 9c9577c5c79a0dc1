"""The two entry points of the op, and the choice of who computes it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Never

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn import checks, tracing
from deform_attn.backends import kinds, registry, remembered
from deform_attn.backends.base import Tensors
from deform_attn.shape_checks import on_host
from deform_attn.signatures import by_name
from deform_attn.torch_ops import autocast

_asked_for: ContextVar[str | None] = ContextVar("deform_attn_backend", default=None)

_LEAVE_OUT = "Leave out level_start_index and im2col_step: they are not needed."


@by_name
def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *others: Never,
    num_points: int | Sequence[int] | None = None,
    padding_mask: Tensor | None = None,
    offset_scale: float = 0.5,
    interpolation: str = "bilinear",
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    r"""Deformable attention from raw offsets and logits, as a linear map of the query gives them.

    For each query and head, with :math:`A` the softmax of the logits over all T points of all levels,

    .. math:: \sum_l \sum_k A_{mlqk} \cdot x^l(\phi_l(\hat p_q) + \Delta p_{mlqk})

    (Zhu et al. 2020, https://arxiv.org/abs/2010.04159, equation 3 between the two projections of `value` and output).

    Args:
        value: the projected maps of all L levels, one after the other, `[N, S, M, D]`, S = sum of H*W.
        spatial_shapes: L pairs (H, W) of ints, or an integer tensor `[L, 2]`, on the CPU or where value is. On the CPU
            a tensor is read and judged on every call; elsewhere, and in graphs, nothing waits for its numbers.
        reference_points: `[N, Q, L or 1, 2]` as (x, y), or `[N, Q, L or 1, 4]` as boxes (cx, cy, w, h). Both are
            fractions of the map's width and height: [0, 1] spans it. The level axis may be left out.
        sampling_offsets: `[N, Q, M, L, P, 2]` in (x, y), or flat `[N, Q, M, T, 2]` with `num_points`. With 2-d
            references they are pixels of their level: location = reference + offset / (W, H). With boxes they are
            relative to the box: location = (cx, cy) + offset / P_l * (w, h) * offset_scale.
        attention_logits: `[N, Q, M, T]`, always flat, level by level; any range.
        num_points: points of each level (T is their sum), or one int for all levels.
        padding_mask: `[N, S]` bool, True = padding: such a pixel reads 0, whatever it holds. Weights stay as they are.
        offset_scale: see `sampling_offsets`; used with boxes only.
        interpolation: "bilinear", or "nearest", the pixel that contains the location.
        padding_mode: what is read off the map: 0 ("zeros") or the nearest pixel of the map ("border").
        backend: name of the backend that must run; by default the first that can (see `explain`).

    Returns:
        `[N, Q, M*D]` in value's dtype. Coordinates and sums are float32, or float64 if any input is.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it, what was expected, what came, and a fix.

    Example:
        >>> import torch
        >>> from deform_attn import deformable_attention
        >>> N, Q, M, D, P = 2, 5, 4, 8, 3
        >>> shapes = [(12, 18), (6, 9)]
        >>> value = torch.randn(N, 12 * 18 + 6 * 9, M, D)
        >>> reference_points = torch.rand(N, Q, 2)
        >>> offsets, logits = torch.randn(N, Q, M, 2, P, 2), torch.randn(N, Q, M, 2 * P)
        >>> deformable_attention(value, shapes, reference_points, offsets, logits).shape
        torch.Size([2, 5, 32])
    """
    if others:
        names = "value, spatial_shapes, reference_points, sampling_offsets, attention_logits"
        checks.by_position("deformable_attention", names, others, _LEAVE_OUT)
    name = _name(backend)
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = on_host(spatial_shapes)
    value = autocast.cast(value)
    tensors = value, reference_points, sampling_offsets, attention_logits, padding_mask
    kind = kinds.kind_of(name, tensors, 2, spatial_shapes, num_points, offset_scale, interpolation, padding_mode)
    if kind is not None and (call := remembered.recall(kind)) is not None:
        return call(tensors)
    inputs = checks.attention_inputs(
        value,
        spatial_shapes,
        reference_points,
        sampling_offsets,
        attention_logits,
        num_points,
        padding_mask,
        offset_scale,
        interpolation,
        padding_mode,
    )
    return _run(inputs, name, kind, tensors)


@by_name
def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *others: Never,
    num_points: int | Sequence[int] | None = None,
    interpolation: str = "bilinear",
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> Tensor:
    """The classic op: read `value` at ready-made locations and add up by ready-made weights.

    What the extensions of Deformable DETR and mmcv compute (Zhu et al. 2020, https://arxiv.org/abs/2010.04159).

    Args:
        value: the projected maps of all L levels, one after the other, `[N, S, M, D]`, S = sum of H*W.
        spatial_shapes: L pairs (H, W) of ints, or an integer tensor `[L, 2]`, on the CPU or where value is. On the CPU
            a tensor is read and judged on every call; elsewhere, and in graphs, nothing waits for its numbers.
        sampling_locations: `[N, Q, M, L, P, 2]` as (x, y), or flat `[N, Q, M, T, 2]` with `num_points`. [0, 1] spans
            the map. The centre of pixel i is at (i + 0.5) / W. Locations off the map are allowed.
        attention_weights: `[N, Q, M, L, P]`, or flat `[N, Q, M, T]`; any range, used as they are.
        num_points: points of each level (T is their sum), or one int for all levels.
        interpolation: "bilinear", or "nearest", the pixel that contains the location.
        padding_mode: what is read off the map: 0 ("zeros") or the nearest pixel of the map ("border").
        backend: name of the backend that must run; by default the first that can (see `explain`).

    Returns:
        `[N, Q, M*D]` in value's dtype. Coordinates and sums are float32, or float64 if any input is.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it, what was expected, what came, and a fix.

    Example:
        >>> import torch
        >>> from deform_attn import multi_scale_deformable_attention
        >>> value = torch.randn(2, 12 * 18 + 6 * 9, 4, 8)
        >>> locations, weights = torch.rand(2, 5, 4, 2, 3, 2), torch.rand(2, 5, 4, 2, 3)
        >>> multi_scale_deformable_attention(value, [(12, 18), (6, 9)], locations, weights).shape
        torch.Size([2, 5, 32])
    """
    if others:
        names = "value, spatial_shapes, sampling_locations, attention_weights"
        checks.by_position("multi_scale_deformable_attention", names, others, _LEAVE_OUT)
    name = _name(backend)
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes = on_host(spatial_shapes)
    value = autocast.cast(value)
    tensors = value, sampling_locations, attention_weights
    kind = kinds.kind_of(name, tensors, 1, spatial_shapes, num_points, interpolation, padding_mode)
    if kind is not None and (call := remembered.recall(kind)) is not None:
        return call(tensors)
    inputs = checks.sampling_inputs(
        value, spatial_shapes, sampling_locations, attention_weights, num_points, interpolation, padding_mode
    )
    return _run(inputs, name, kind, tensors)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Let the backend called `name` run every call inside the block; one that it cannot run raises.

    A call's own `backend` argument overrides it. The choice holds for the current thread or asynchronous task only, and
    for what is called inside the block. In a free-threaded Python it also holds in threads that start inside the block
    (`sys.flags.thread_inherit_context`). Code compiled by torch.compile keeps the backend that it was traced with.
    Under activation checkpointing the backward pass must run inside the block, too.

    Args:
        name: a name that `explain()` lists.

    Raises:
        ValueError: the name is unknown; inside the block, a call is one that this backend cannot run.

    Example:
        >>> import torch
        >>> from deform_attn import multi_scale_deformable_attention, use_backend
        >>> with use_backend("reference"):
        ...     output = multi_scale_deformable_attention(
        ...         torch.ones(1, 6, 1, 1), [(2, 3)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1)
        ...     )
        >>> output
        tensor([[[1.]]])
    """
    token = _asked_for.set(registry.get(name).name)
    try:
        yield
    finally:
        _asked_for.reset(token)


def explain(
    value: Any = None,
    spatial_shapes: Any = None,
    *tensors: Tensor,
    num_points: int | Sequence[int] | None = None,
    padding_mask: Tensor | None = None,
    offset_scale: float = 0.5,
    interpolation: str = "bilinear",
    padding_mode: str = "zeros",
    backend: str | None = None,
) -> registry.Explanation:
    """Say which backend would run a call, and why each other one would not; without arguments, what is available here.

    Args:
        value: this and all others as you would pass them to one of the two entry points, tensors by position.
        spatial_shapes: as there.
        *tensors: `reference_points, sampling_offsets, attention_logits` as in `deformable_attention`, or
            `sampling_locations, attention_weights` as in `multi_scale_deformable_attention`.
        num_points: as there.
        padding_mask: as there.
        offset_scale: as there.
        interpolation: as there.
        padding_mode: as there.
        backend: as there.

    Returns:
        An `Explanation` with `backend`, the name of the one that runs, and `reasons`, for each name what speaks
        against it; `print` it for a table.

    Raises:
        ValueError, TypeError: as the entry point does, and for another number of tensors.

    Example:
        >>> import torch
        >>> from deform_attn import explain
        >>> value, locations, weights = torch.ones(1, 6, 1, 1), torch.rand(1, 4, 1, 1, 2, 2), torch.rand(1, 4, 1, 1, 2)
        >>> explain(value, [(2, 3)], locations, weights, backend="reference").backend
        'reference'
    """
    inputs: checks.Inputs | None = None
    if len(tensors) == 2:
        checks.unmasked(padding_mask)
        inputs = checks.sampling_inputs(
            value, spatial_shapes, tensors[0], tensors[1], num_points, interpolation, padding_mode
        )
    elif len(tensors) == 3:
        inputs = checks.attention_inputs(
            value,
            spatial_shapes,
            tensors[0],
            tensors[1],
            tensors[2],
            num_points,
            padding_mask,
            offset_scale,
            interpolation,
            padding_mode,
        )
    else:
        checks.nothing_to_explain(value, spatial_shapes, tensors)
    name = _name(backend)
    return registry.explanation(inputs, None if name is None else registry.get(name).name)


def _run(inputs: checks.Inputs, name: str | None, kind: kinds.Kind | None, tensors: Tensors) -> Tensor:
    """Run a judged call by the backend that is chosen for it; one that has a kind may be remembered."""
    if is_tracing():
        with tracing.paused():
            chosen = registry.select(inputs, name)
            checks.writable(chosen.name)
    else:
        chosen = registry.select(inputs, name)
    if kind is not None and chosen.is_registered and not chosen.only_by_name(inputs):
        output = remembered.remember(kind, inputs, tensors, chosen)
        if output is not None:
            return output
    return chosen.sample(inputs) if isinstance(inputs, checks.SamplingInputs) else chosen.attend(inputs)


def _name(backend: Any) -> str | None:
    if backend is None:
        if torch.compiler.is_dynamo_compiling():
            from deform_attn import untraced

            return untraced.constant(_name_in_context)  # the name that holds while torch.compile traces
        return _asked_for.get()
    if not isinstance(backend, str):
        registry.get(backend)  # raises; an array must not reach a comparison
    return backend


def _name_in_context() -> str | None:
    return _asked_for.get()
