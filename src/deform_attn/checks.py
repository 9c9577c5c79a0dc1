"""Every error that a user can cause in a call, in one place; what passes is handed on in one normal form.

Each message names the argument, what was expected in the letters of docs/conventions.md, what came, and one fix.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

INTERPOLATIONS = ("bilinear", "nearest")
PADDING_MODES = ("zeros", "border")
FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class SamplingInputs(NamedTuple):
    """A judged call of the classic op, in normal form."""

    value: Tensor  # [N, S, M, D]
    spatial_shapes: tuple[tuple[int, int], ...]  # L pairs (H, W)
    sampling_locations: Tensor  # [N, Q, M, T, 2]
    attention_weights: Tensor  # [N, Q, M, T]
    num_points: tuple[int, ...]  # L counts that add up to T
    interpolation: str
    padding_mode: str


class AttentionInputs(NamedTuple):
    """A judged call from raw offsets and logits, in normal form."""

    value: Tensor  # [N, S, M, D]
    spatial_shapes: tuple[tuple[int, int], ...]  # L pairs (H, W)
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
    _value(value)
    shapes = spatial_shapes_of(spatial_shapes, value.shape[1])
    locations, counts = _points("sampling_locations", sampling_locations, value, len(shapes), num_points)
    _tensor("attention_weights", attention_weights)
    if attention_weights.shape == sampling_locations.shape[:-1]:
        weights = attention_weights.reshape(locations.shape[:-1])
    else:
        _fail(
            "attention_weights",
            f"the shape of sampling_locations without its last axis, {_shape(sampling_locations.shape[:-1])}",
            _shape(attention_weights.shape),
            "Give one weight for each sampling location.",
        )
    _same_device(value, sampling_locations=sampling_locations, attention_weights=attention_weights)
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
    _value(value)
    shapes = spatial_shapes_of(spatial_shapes, value.shape[1])
    offsets, counts = _points("sampling_offsets", sampling_offsets, value, len(shapes), num_points)
    N, Q, M, T, _ = offsets.shape
    references = _references(reference_points, N, Q, len(shapes))
    _tensor("attention_logits", attention_logits)
    if attention_logits.shape != offsets.shape[:-1]:
        _fail(
            "attention_logits",
            f"[N, Q, M, T] = [{N}, {Q}, {M}, {T}], all levels flat",
            _shape(attention_logits.shape),
            "Use attention_logits.flatten(3) if yours have a level axis.",
        )
    if padding_mask is not None:
        _mask(padding_mask, value)
        _same_device(value, padding_mask=padding_mask)
    _same_device(
        value,
        reference_points=reference_points,
        sampling_offsets=sampling_offsets,
        attention_logits=attention_logits,
    )
    # Compared, since torch.compile cannot ask math.isfinite of a symbolic number.
    number = isinstance(offset_scale, (int, float)) and not isinstance(offset_scale, bool)
    if not number or not -math.inf < offset_scale < math.inf:
        _fail("offset_scale", "a finite number", repr(offset_scale), "The published models use 0.5.")
    _options(interpolation, padding_mode)
    return AttentionInputs(
        value,
        shapes,
        references,
        offsets,
        attention_logits,
        counts,
        padding_mask,
        offset_scale,
        interpolation,
        padding_mode,
    )


def spatial_shapes_of(spatial_shapes: Any, pixels: int | None = None) -> tuple[tuple[int, int], ...]:
    """Return `spatial_shapes` as a tuple of int pairs (H, W), checked to add up to `pixels` (S) where that is given."""
    expected = "pairs of ints (H, W), one for each level"
    if isinstance(spatial_shapes, Tensor):
        if torch.compiler.is_compiling():
            _fail("spatial_shapes", expected, "a tensor", "Under torch.compile and export pass a list of int pairs.")
        if spatial_shapes.dtype.is_floating_point or spatial_shapes.dtype == torch.bool or spatial_shapes.ndim != 2:
            got = f"a {_dtype(spatial_shapes)} tensor {_shape(spatial_shapes.shape)}"
            _fail("spatial_shapes", expected, got, "Use an integer tensor [L, 2], or better a list of int pairs.")
        spatial_shapes = spatial_shapes.tolist()
    if not isinstance(spatial_shapes, Sequence) or isinstance(spatial_shapes, str):
        got = f"{spatial_shapes!r:.80}"
        _fail("spatial_shapes", expected, got, "For one map of 32 rows and 48 columns write [(32, 48)].", TypeError)
    if not spatial_shapes:
        _fail("spatial_shapes", "at least one pair (H, W)", "none", "For one map write [(H, W)].")
    shapes = tuple(_pair(shape, expected) for shape in spatial_shapes)
    if pixels is not None:
        total = sum(H * W for H, W in shapes)
        if total != pixels:
            got = f"{list(shapes)}, together {total} pixels, beside S = {pixels}"
            _fail("spatial_shapes", "sizes H*W that add up to S", got, "Check the order (H, W) and the levels' number.")
    return shapes


def point_counts(num_points: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """Return `num_points` as one count for each of the `levels`."""
    expected = f"an int >= 0, or {levels} of them, one for each level"
    fix = f"Write e.g. num_points={[4] * levels}."
    counts = tuple(num_points) if isinstance(num_points, Sequence) else (num_points,) * levels
    if not all(_is_int(count) for count in counts):
        _fail("num_points", expected, repr(num_points), fix, TypeError)
    if len(counts) != levels or any(count < 0 for count in counts):
        _fail("num_points", expected, repr(num_points), fix)
    return counts


def module_sizes(embed_dim: int, num_heads: int, **others: int) -> None:
    """Judge the sizes that a module is built with."""
    for name, size in {"embed_dim": embed_dim, "num_heads": num_heads, **others}.items():
        if not _is_int(size):
            _fail(name, "an int >= 1", repr(size), "Pass a plain int.", TypeError)
        if size < 1:
            _fail(name, "an int >= 1", repr(size), "Pass a positive number.")
    if embed_dim % num_heads:
        _fail("embed_dim", f"a multiple of num_heads = {num_heads}", str(embed_dim), "Change one of the two.")


def module_dtype(name: str, tensor: Tensor, weight: Tensor) -> None:
    """Judge that a tensor given to a module has the dtype of its `weight`, where autocast does not see to that."""
    device = tensor.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if tensor.dtype != weight.dtype and not autocast:
        fix = f"Use {name}.to(torch.{_dtype(weight)}), convert the module, or run under torch.autocast."
        _fail(name, f"the module's dtype {_dtype(weight)}", _dtype(tensor), fix, TypeError)


def module_tensor(name: str, tensor: Tensor, letters: str, sizes: dict[str, int]) -> None:
    """Judge a tensor given to a module: `letters` such as "N Q C" name its axes, `sizes` fix some of them."""
    _tensor(name, tensor)
    axes = letters.split()
    fits = tensor.ndim == len(axes) and all(
        sizes.get(axis, size) == size for axis, size in zip(axes, tensor.shape, strict=True)
    )
    if not fits:
        # Written only now: under torch.compile, a size that is printed is a size that cannot change any more.
        expected = "[" + ", ".join(f"{axis} = {sizes[axis]}" if axis in sizes else axis for axis in axes) + "]"
        _fail(name, expected, _shape(tensor.shape), "Compare the axes with the module's docstring.")


def feature_maps(features: Any, levels: int, channels: int, batch: int) -> None:
    """Judge a list of feature maps given to a module."""
    expected = f"a tensor [N, S, C = {channels}], or a list of {levels} maps [N, C = {channels}, H, W]"
    if not isinstance(features, Sequence):
        _fail("features", expected, type(features).__name__, "Pass the maps in a list.", TypeError)
    if len(features) != levels:
        _fail("features", expected, f"{len(features)} maps", f"Give one map for each of the {levels} levels.")
    for i, feature in enumerate(features):
        module_tensor(f"features[{i}]", feature, "N C H W", {"N": batch, "C": channels})


def module_shapes(features: Tensor, spatial_shapes: Any, levels: int) -> tuple[tuple[int, int], ...]:
    """Judge the spatial_shapes given to a module beside flat features `[N, S, C]`."""
    if spatial_shapes is None:
        _fail(
            "spatial_shapes",
            "pairs (H, W) beside flat features [N, S, C]",
            "None",
            "Pass them, or features as a list of maps [N, C, H, W].",
        )
    shapes = spatial_shapes_of(spatial_shapes, features.shape[1])
    if len(shapes) != levels:
        fix = "Give one pair for each level, or build the module with another num_levels."
        _fail("spatial_shapes", f"{levels} pairs (H, W), one for each level", str(len(shapes)), fix)
    return shapes


def redundant_shapes(spatial_shapes: Any, shapes: tuple[tuple[int, int], ...]) -> None:
    """Judge spatial_shapes given beside a list of maps, which have them already."""
    if spatial_shapes is not None and spatial_shapes_of(spatial_shapes) != shapes:
        got = str(list(spatial_shapes_of(spatial_shapes)))
        _fail("spatial_shapes", f"the sizes of the maps, {list(shapes)}", got, "Leave it out beside a list of maps.")


def module_mask(padding_mask: Any, shapes: Sequence[tuple[int, int]], batch: int) -> Any:
    """Return a module's padding mask as `[N, S]`, flattened if it came as a list of masks `[N, H, W]` beside maps."""
    if not isinstance(padding_mask, Sequence):
        return padding_mask  # judged with the rest of the call
    got = [list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__ for mask in padding_mask]
    if got != [[batch, H, W] for H, W in shapes]:
        sizes = f"N = {batch} and (H, W) = {list(shapes)}"
        expected = f"a bool tensor [N, S], or a list of bool masks [N, H, W] with {sizes}"
        _fail("padding_mask", expected, str(got), "Give one mask for each map; True marks padding.")
    return torch.cat([mask.flatten(1) for mask in padding_mask], dim=1)


def recordable(modules: Sequence[Any], model: str) -> None:
    """Judge whether a model has a module to record."""
    if not modules:
        fix = "Give the model, or a part of it, that has one."
        _fail("model", "a module with a deformable attention inside", f"{model} without one", fix)


def unmasked(padding_mask: Any) -> None:
    """Judge that `explain` was given no mask beside the tensors of the classic op."""
    if padding_mask is not None:
        fix = "Zero the masked pixels of value instead."
        _fail("padding_mask", "None for multi_scale_deformable_attention", type(padding_mask).__name__, fix)


def nothing_to_explain(value: Any, spatial_shapes: Any, tensors: Sequence[Any]) -> None:
    """Judge that `explain`, given no call, was given nothing."""
    given = sum(argument is not None for argument in (value, spatial_shapes)) + len(tensors)
    if given:
        expected = "the 5 arguments of deformable_attention, the 4 of multi_scale_deformable_attention, or none"
        _fail("explain", expected, str(given), "Pass what you would pass to the function, by position.", TypeError)


def backend_name(name: Any, known: Sequence[str]) -> None:
    """Judge the name of a backend."""
    if name not in known:
        fix = "explain() shows what is available here."
        _fail("backend", "one of " + ", ".join(map(repr, known)), repr(name), fix)


def _fail(argument: str, expected: str, got: str, fix: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{argument}: expected {expected}, got {got}. {fix}")


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_int(number: Any) -> bool:
    return isinstance(number, (numbers.Integral, torch.SymInt)) and not isinstance(number, bool)


def _pair(shape: Any, expected: str) -> tuple[int, int]:
    fix = "Sizes are ints, rows first: (H, W)."
    if not isinstance(shape, Sequence) or len(shape) != 2 or not all(map(_is_int, shape)):
        _fail("spatial_shapes", expected, f"{shape!r:.80}", fix, TypeError)
    H, W = shape
    if H < 0 or W < 0:
        _fail("spatial_shapes", expected, f"the negative size {(H, W)}", fix)
    return H, W


def _tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        _fail(name, "a tensor", type(tensor).__name__, "Convert it with torch.as_tensor.", TypeError)
    if tensor.dtype not in FLOAT_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        _fail(name, f"a dtype among {names}", _dtype(tensor), f"Use {name}.float().", TypeError)


def _value(value: Any) -> None:
    _tensor("value", value)
    if value.ndim != 4:
        _fail("value", "[N, S, M, D]", _shape(value.shape), "Split the channels with value.unflatten(-1, (M, D)).")


def _points(
    name: str, points: Any, value: Tensor, levels: int, num_points: int | Sequence[int] | None
) -> tuple[Tensor, tuple[int, ...]]:
    """Judge locations or offsets; return them as `[N, Q, M, T, 2]`, and the point counts of the levels."""
    _tensor(name, points)
    if points.ndim not in (5, 6) or points.shape[-1] != 2:
        expected = "[N, Q, M, L, P, 2], or flat [N, Q, M, T, 2]"
        _fail(name, expected, _shape(points.shape), "The last axis is (x, y).")
    N, _, M, _ = value.shape
    for letter, axis, size in (("N", 0, N), ("M", 2, M)):
        if points.shape[axis] != size:
            expected = f"{letter} = {size} in axis {axis}, as in value {_shape(value.shape)}"
            _fail(name, expected, f"{points.shape[axis]} ({_shape(points.shape)})", "Compare it with value.")
    if points.ndim == 6:
        L, P = points.shape[3:5]
        if levels != L:
            expected = f"L = {levels} in axis 3, as in spatial_shapes"
            _fail(name, expected, f"{L} ({_shape(points.shape)})", "Give one group of points for each level.")
        if num_points is not None and point_counts(num_points, levels) != (P,) * levels:
            expected = f"{P} for each level, as in {name} {_shape(points.shape)}"
            _fail("num_points", expected, repr(num_points), f"Leave it out, or give flat {name}.")
        return points.flatten(3, 4), (P,) * levels
    if num_points is None:
        fix = f"Say how its points are shared among the levels, or give {name} [N, Q, M, L, P, 2]."
        _fail("num_points", f"one count for each level beside flat {name} [N, Q, M, T, 2]", "None", fix)
    counts = point_counts(num_points, levels)
    if sum(counts) != points.shape[3]:
        expected = f"T = {sum(counts)} in axis 3, the sum of num_points {list(counts)}"
        _fail(name, expected, f"{points.shape[3]} ({_shape(points.shape)})", "Change num_points or the points.")
    return points, counts


def _references(reference_points: Any, N: int, Q: int, levels: int) -> Tensor:
    """Judge reference points; return them with their level axis, `[N, Q, L or 1, 2 or 4]`."""
    _tensor("reference_points", reference_points)
    shape = reference_points.shape
    fix = "2 numbers are (x, y), 4 are (cx, cy, w, h), all in [0, 1]; the level axis may be left out."
    if len(shape) not in (3, 4) or shape[-1] not in (2, 4):
        _fail("reference_points", "[N, Q, L or 1, 2 or 4]", _shape(shape), fix)
    if shape[0] != N or shape[1] != Q or (len(shape) == 4 and shape[2] not in (1, levels)):
        axis = f"{levels} or 1" if levels > 1 else "1"
        _fail("reference_points", f"[N, Q, L or 1, 2 or 4] = [{N}, {Q}, {axis}, 2 or 4]", _shape(shape), fix)
    return reference_points if len(shape) == 4 else reference_points[:, :, None]


def _mask(padding_mask: Any, value: Tensor) -> None:
    N, S = value.shape[:2]
    fix = "True marks padding; use padding_mask.bool(), or invert a mask whose True means valid."
    if not isinstance(padding_mask, Tensor):
        _fail("padding_mask", "a bool tensor [N, S]", type(padding_mask).__name__, fix, TypeError)
    if padding_mask.dtype != torch.bool:
        _fail("padding_mask", "dtype bool", _dtype(padding_mask), fix, TypeError)
    if padding_mask.shape != (N, S):
        _fail("padding_mask", f"[N, S] = [{N}, {S}]", _shape(padding_mask.shape), fix)


def _same_device(value: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        if tensor.device != value.device:
            _fail(name, f"value's device {value.device}", str(tensor.device), f"Use {name}.to(value.device).")


def _options(interpolation: Any, padding_mode: Any) -> None:
    for name, option, known in (
        ("interpolation", interpolation, INTERPOLATIONS),
        ("padding_mode", padding_mode, PADDING_MODES),
    ):
        if option not in known:
            _fail(name, "one of " + ", ".join(map(repr, known)), repr(option), "Leave it out for the paper's choice.")
