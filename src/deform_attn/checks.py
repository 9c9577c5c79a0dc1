"""Every error that a user can cause in a call, in one place; what passes is handed on in one normal form.

Each message names the argument, what was expected in the letters of docs/conventions.md, what came, and one fix.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn import tracing
from deform_attn.messages import dtype_text, fail, shape_text, shown
from deform_attn.shape_checks import Pairs, sizes_of
from deform_attn.tensor_checks import dense, float_tensor, same_device
from deform_attn.whole_numbers import fit, is_int, is_list, plain

INTERPOLATIONS = ("bilinear", "nearest")
PADDING_MODES = ("zeros", "border")

_MOST_FLOAT = sys.float_info.max


class SamplingInputs(NamedTuple):
    """A judged call of the classic op, in normal form."""

    value: Tensor  # [N, S, M, D]
    spatial_shapes: Pairs | Tensor  # L pairs (H, W), or as a tensor [L, 2] that the host cannot read
    sampling_locations: Tensor  # [N, Q, M, T, 2]
    attention_weights: Tensor  # [N, Q, M, T]
    num_points: tuple[int, ...]  # L counts that add up to T
    interpolation: str
    padding_mode: str


class AttentionInputs(NamedTuple):
    """A judged call from raw offsets and logits, in normal form."""

    value: Tensor  # [N, S, M, D]
    spatial_shapes: Pairs | Tensor  # L pairs (H, W), or as a tensor [L, 2] that the host cannot read
    reference_points: Tensor  # [N, Q, L or 1, 2 or 4]
    sampling_offsets: Tensor  # [N, Q, M, T, 2]
    attention_logits: Tensor  # [N, Q, M, T]
    num_points: tuple[int, ...]  # L counts that add up to T
    padding_mask: Tensor | None  # [N, S], True = padding
    offset_scale: float
    interpolation: str
    padding_mode: str


Inputs = SamplingInputs | AttentionInputs


def sampling_inputs(
    value: Tensor,
    spatial_shapes: Any,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: int | Sequence[int] | None,
    interpolation: str,
    padding_mode: str,
) -> SamplingInputs:
    """Judge the arguments of `multi_scale_deformable_attention`."""
    if is_tracing():
        sizes, counts = tracing.sizes(spatial_shapes), tracing.counts(num_points)
        with tracing.paused():
            judged = sampling_inputs(
                value, sizes, sampling_locations, attention_weights, counts, interpolation, padding_mode
            )
        return judged._replace(
            spatial_shapes=sizes if isinstance(sizes, Tensor) else judged.spatial_shapes,
            sampling_locations=_flat(sampling_locations, 5),
            attention_weights=_flat(attention_weights, 4),
        )
    _value(value)
    shapes = sizes_of(spatial_shapes, value)
    locations, counts = _points("sampling_locations", sampling_locations, value, len(shapes), num_points)
    float_tensor("attention_weights", attention_weights)
    same_device("value", value, "attention_weights", attention_weights)
    if attention_weights.shape == sampling_locations.shape[:-1]:
        weights = attention_weights.reshape(locations.shape[:-1])
    else:
        fail(
            "attention_weights",
            f"the shape of sampling_locations without its last axis, {shape_text(sampling_locations.shape[:-1])}",
            shape_text(attention_weights.shape),
            "Give one weight for each sampling location.",
        )
    _options(interpolation, padding_mode)
    return SamplingInputs(value, shapes, locations, weights, counts, interpolation, padding_mode)


def attention_inputs(
    value: Tensor,
    spatial_shapes: Any,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    num_points: int | Sequence[int] | None,
    padding_mask: Tensor | None,
    offset_scale: float,
    interpolation: str,
    padding_mode: str,
) -> AttentionInputs:
    """Judge the arguments of `deformable_attention`."""
    if is_tracing():
        sizes, counts = tracing.sizes(spatial_shapes), tracing.counts(num_points)
        options = padding_mask, offset_scale, interpolation, padding_mode
        with tracing.paused():
            traced = attention_inputs(
                value, sizes, reference_points, sampling_offsets, attention_logits, counts, *options
            )
        return traced._replace(
            spatial_shapes=sizes if isinstance(sizes, Tensor) else traced.spatial_shapes,
            reference_points=_with_levels(reference_points),
            sampling_offsets=_flat(sampling_offsets, 5),
        )
    _value(value)
    shapes = sizes_of(spatial_shapes, value)
    offsets, counts = _points("sampling_offsets", sampling_offsets, value, len(shapes), num_points)
    N, Q, M, T, _ = offsets.shape
    references = references_of(reference_points, offsets, len(shapes))
    float_tensor("attention_logits", attention_logits)
    same_device("value", value, "attention_logits", attention_logits)
    if attention_logits.shape != offsets.shape[:-1]:
        fail(
            "attention_logits",
            f"[N, Q, M, T] = [{N}, {Q}, {M}, {T}], all levels flat",
            shape_text(attention_logits.shape),
            "Use attention_logits.flatten(3) if yours have a level axis.",
        )
    if padding_mask is not None:
        _mask(padding_mask, value)
        same_device("value", value, "padding_mask", padding_mask)
    # Compared, since torch.compile cannot ask math.isfinite of a symbolic number. An int may be beyond all floats.
    number = isinstance(offset_scale, (int, float)) and not isinstance(offset_scale, bool)
    if not number or not -_MOST_FLOAT <= offset_scale <= _MOST_FLOAT:
        fail("offset_scale", "a finite number", shown(offset_scale), "The published models use 0.5.")
    _options(interpolation, padding_mode)
    return AttentionInputs(
        value,
        shapes,
        references,
        offsets,
        attention_logits,
        counts,
        padding_mask,
        float(offset_scale),
        interpolation,
        padding_mode,
    )


def point_counts(num_points: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """Return `num_points` as one count for each of the `levels`."""
    expected = f"an int >= 0, or {levels} of them, one for each level"
    fix = f"Write e.g. num_points={[4] * min(levels, 8)}."
    counts: tuple[Any, ...] = tuple(num_points) if is_list(num_points) else (num_points,) * levels
    if not all(is_int(count) for count in counts):
        fail("num_points", expected, shown(num_points), fix, TypeError)
    if len(counts) != levels or any(count < 0 for count in counts):
        fail("num_points", expected, shown(num_points), fix)
    if not fit(counts):
        fail("num_points", "counts below 2^31", shown(num_points), fix)
    return tuple(map(plain, counts))


def unmasked(padding_mask: Any) -> None:
    """Judge that `explain` was given no mask beside the tensors of the classic op."""
    if padding_mask is not None:
        fix = "Zero the masked pixels of value instead."
        fail("padding_mask", "None for multi_scale_deformable_attention", type(padding_mask).__name__, fix)


def by_position(function: str, names: str, others: Sequence[Any], fix: str) -> NoReturn:
    """Refuse the `others` that were passed to `function` by position after the arguments called `names`."""
    if is_tracing() and torch.onnx.is_in_onnx_export():
        tracing.not_for_onnx()  # with dynamo=False it passes everything by position
    count = len(names.split(", "))
    expected = f"{count} {'argument' if count == 1 else 'arguments'} by position ({names}) and all others by name"
    fail(function, expected, f"{count + len(others)} by position", fix, TypeError)


def nothing_to_explain(value: Any, spatial_shapes: Any, tensors: Sequence[Any]) -> None:
    """Judge that `explain`, given no call, was given nothing."""
    given = sum(argument is not None for argument in (value, spatial_shapes)) + len(tensors)
    if given:
        expected = (
            "no arguments, or value, spatial_shapes, sampling_locations, attention_weights, or value, spatial_shapes, "
            "reference_points, sampling_offsets, attention_logits"
        )
        fix = "Pass them by position, as to the function; level_start_index is not needed."
        fail("explain", expected, f"{given} arguments", fix, TypeError)


def backend_name(name: Any, known: Sequence[str]) -> None:
    """Judge the name of a backend."""
    if not isinstance(name, str) or name not in known:
        fix = "explain() shows what is available here."
        fail("backend", "one of " + ", ".join(map(repr, known)), shown(name), fix)


def writable(backend: str) -> None:
    """Judge whether torch.onnx.export(dynamo=False), if torch.jit.trace works for it, can write this backend."""
    if backend != "grid_sample" and torch.onnx.is_in_onnx_export():
        tracing.not_for_onnx()


def _value(value: Any) -> None:
    float_tensor("value", value)
    if value.ndim != 4:
        fail("value", "[N, S, M, D]", shape_text(value.shape), "Split the channels with value.unflatten(-1, (M, D)).")


def _points(
    name: str, points: Any, value: Tensor, levels: int, num_points: int | Sequence[int] | None
) -> tuple[Tensor, tuple[int, ...]]:
    """Judge locations or offsets; return them as `[N, Q, M, T, 2]`, and the point counts of the levels."""
    float_tensor(name, points)
    same_device("value", value, name, points)
    if points.ndim not in (5, 6) or points.shape[-1] != 2:
        expected = "[N, Q, M, L, P, 2], or flat [N, Q, M, T, 2]"
        fail(name, expected, shape_text(points.shape), "The last axis is (x, y).")
    N, _, M, _ = value.shape
    for letter, axis, size in (("N", 0, N), ("M", 2, M)):
        if points.shape[axis] != size:
            expected = f"{letter} = {size} in axis {axis}, as in value {shape_text(value.shape)}"
            fail(name, expected, f"{points.shape[axis]} ({shape_text(points.shape)})", "Compare it with value.")
    if points.ndim == 6:
        L, P = points.shape[3:5]
        if levels != L:
            expected = f"L = {levels} in axis 3, as in spatial_shapes"
            fail(name, expected, f"{L} ({shape_text(points.shape)})", "Give one group of points for each level.")
        if num_points is not None and point_counts(num_points, levels) != (P,) * levels:
            expected = f"{P} for each level, as in {name} {shape_text(points.shape)}"
            fail("num_points", expected, shown(num_points), f"Leave it out, or give flat {name}.")
        return points.flatten(3, 4), (P,) * levels
    if num_points is None:
        fix = f"Say how its points are shared among the levels, or give {name} [N, Q, M, L, P, 2]."
        fail("num_points", f"one count for each level beside flat {name} [N, Q, M, T, 2]", "None", fix)
    counts = point_counts(num_points, levels)
    if sum(counts) != points.shape[3]:
        expected = f"T = {sum(counts)} in axis 3, the sum of num_points {list(counts)}"
        fail(name, expected, f"{points.shape[3]} ({shape_text(points.shape)})", "Change num_points or the points.")
    return points, counts


def references_of(reference_points: Any, offsets: Tensor, levels: int) -> Tensor:
    """Judge reference points beside judged offsets; return them with their level axis, `[N, Q, L or 1, 2 or 4]`."""
    if is_tracing():
        with tracing.paused():
            references_of(reference_points, offsets, levels)
        return _with_levels(reference_points)
    float_tensor("reference_points", reference_points)
    same_device("value", offsets, "reference_points", reference_points)  # offsets are where value is
    N, Q = offsets.shape[:2]
    shape = reference_points.shape
    fix = "2 numbers are (x, y), 4 are (cx, cy, w, h), all in [0, 1]; the level axis may be left out."
    if len(shape) not in (3, 4) or shape[-1] not in (2, 4):
        fail("reference_points", "[N, Q, L or 1, 2 or 4]", shape_text(shape), fix)
    if shape[0] != N or shape[1] != Q or (len(shape) == 4 and shape[2] not in (1, levels)):
        axis = f"{levels} or 1" if levels > 1 else "1"
        fail("reference_points", f"[N, Q, L or 1, 2 or 4] = [{N}, {Q}, {axis}, 2 or 4]", shape_text(shape), fix)
    return _with_levels(reference_points)


def _with_levels(reference_points: Tensor) -> Tensor:
    """Return reference points with their level axis."""
    return reference_points if reference_points.ndim == 4 else reference_points[:, :, None]


def _flat(points: Tensor, axes: int) -> Tensor:
    """Return what is `[N, Q, M, L, P, ...]`, or `[N, Q, M, T, ...]` of so many axes already, in the latter form."""
    return points if points.ndim == axes else points.flatten(3, 4)


def _mask(padding_mask: Any, value: Tensor) -> None:
    N, S = value.shape[:2]
    fix = "True marks padding; use padding_mask.bool(), or invert a mask whose True means valid."
    if not isinstance(padding_mask, Tensor):
        fail("padding_mask", "a bool tensor [N, S]", type(padding_mask).__name__, fix, TypeError)
    dense("padding_mask", padding_mask)
    if padding_mask.dtype != torch.bool:
        fail("padding_mask", "dtype bool", dtype_text(padding_mask), fix, TypeError)
    if padding_mask.shape != (N, S):
        fail("padding_mask", f"[N, S] = [{N}, {S}]", shape_text(padding_mask.shape), fix)


def _options(interpolation: Any, padding_mode: Any) -> None:
    for name, option, known in (
        ("interpolation", interpolation, INTERPOLATIONS),
        ("padding_mode", padding_mode, PADDING_MODES),
    ):
        if not isinstance(option, str) or option not in known:
            fix = f"Leave it out for the default, {known[0]!r}."
            fail(name, "one of " + ", ".join(map(repr, known)), shown(option), fix)
