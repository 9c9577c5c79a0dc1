"""spatial_shapes, the sizes of the maps: as pairs of ints, or as an integer tensor wherever its numbers lie.

Numbers in this machine's memory are read and judged on every call. Those on another device are never read: to look at
them would wait for the device. Nor are those of a graph that is traced. docs/conventions.md says what comes of wrong
ones there.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn import torch_names, tracing
from deform_attn.messages import dtype_text, fail, shape_text, shown
from deform_attn.tensor_checks import INT_DTYPES, dense, is_fake, same_device
from deform_attn.whole_numbers import MOST_NUMBERS, fit, is_int, is_list, plain

Pairs = tuple[tuple[int, int], ...]

# Looking a name up in torch takes as long as such a question does.
_int64, _int32, _strided, _is_compiling = torch.int64, torch.int32, torch.strided, torch.compiler.is_compiling

_EXPECTED = "pairs of ints (H, W), one for each level"


def on_host(sizes: Tensor) -> Any:
    """Return a tensor of sizes in this machine's memory as a list of pairs; another one as it is."""
    if _is_usual(sizes):
        return sizes.tolist()
    return _read(sizes) if _is_readable(sizes) else sizes


def sizes_of(spatial_shapes: Any, value: Tensor) -> Pairs | Tensor:
    """Return the sizes of the maps in `value [N, S, M, D]` as pairs, checked to add up to S.

    A tensor `[L, 2]` that the host cannot read is returned, of which all is judged but its numbers.
    """
    if not isinstance(spatial_shapes, Tensor) or _is_readable(spatial_shapes):
        return spatial_shapes_of(spatial_shapes, value.shape[1])
    unread(spatial_shapes, value)
    # The ops take these two, as do all that write such tensors.
    return spatial_shapes if spatial_shapes.dtype in (_int64, _int32) else spatial_shapes.long()


def unread(sizes: Tensor, value: Tensor, levels: int | None = None) -> None:
    """Judge a tensor of sizes beside `value`, but for its numbers, and that it has as many `levels` as are given."""
    _tensor(sizes)
    if levels is not None and sizes.shape[0] != levels:
        fix = "Give one pair for each count in num_points."
        fail("spatial_shapes", f"{levels} {_EXPECTED}", f"a tensor {shape_text(sizes.shape)}", fix)
    if value.is_cpu or not sizes.is_cpu:
        same_device("value", value, "spatial_shapes", sizes)


def spatial_shapes_of(spatial_shapes: Any, pixels: int | None = None) -> Pairs:
    """Return `spatial_shapes` as a tuple of int pairs (H, W), checked to add up to `pixels` (S) where that is given.

    A tensor on another device is waited for. Under torch.jit.trace they are those of the example.
    """
    if is_tracing():
        recorded = tracing.sizes(spatial_shapes)
        with tracing.paused():
            return spatial_shapes_of(recorded, pixels)
    if isinstance(spatial_shapes, Tensor):
        if torch.compiler.is_dynamo_compiling():
            from deform_attn import untraced

            spatial_shapes = untraced.numbers(_read, spatial_shapes)
        else:
            spatial_shapes = _read(spatial_shapes)
    if not is_list(spatial_shapes):
        fix = "For one map of 32 rows and 48 columns write [(32, 48)]."
        fail("spatial_shapes", _EXPECTED, shown(spatial_shapes), fix, TypeError)
    if not spatial_shapes:
        _no_levels()
    shapes = tuple(_pair(shape) for shape in spatial_shapes)
    if not fit([size for shape in shapes for size in shape]):
        fail("spatial_shapes", "sizes below 2^31", shown(shapes), "Check that each pair is the (H, W) of a map.")
    total = sum(H * W for H, W in shapes)
    if not fit([total], MOST_NUMBERS):
        fail("spatial_shapes", "fewer than 2^47 pixels", shown(shapes), "No memory holds so many; use smaller maps.")
    if pixels is not None and total != pixels:
        got = f"{list(shapes)}, {total} pixels in all, but value has S = {pixels}"
        fix = "Check the order (H, W) and the number of levels."
        fail("spatial_shapes", "sizes H*W that add up to S", got, fix)
    return shapes


def _no_levels() -> NoReturn:
    fail("spatial_shapes", "at least one pair (H, W)", "none", "For one map write [(H, W)].")


def _pair(shape: Any) -> tuple[int, int]:
    fix = "Sizes are ints, rows first: (H, W)."
    if not is_list(shape) or len(shape) != 2 or not all(map(is_int, shape)):
        fail("spatial_shapes", _EXPECTED, shown(shape), fix, TypeError)
    H, W = shape
    if H < 0 or W < 0:
        fail("spatial_shapes", _EXPECTED, f"the negative size {shown((H, W))}", fix)
    return plain(H), plain(W)


def _is_readable(tensor: Tensor) -> bool:
    """Return whether the host may read the numbers of a tensor, without a wait."""
    return tensor.is_cpu and not (_is_compiling() or is_fake(tensor) or is_tracing())


def _tensor(tensor: Tensor) -> None:
    """Judge a tensor of sizes, but for its numbers."""
    dense("spatial_shapes", tensor)
    if tensor.dtype not in INT_DTYPES or tensor.ndim != 2 or tensor.shape[1] != 2:
        got = f"a tensor {shape_text(tensor.shape)} of {dtype_text(tensor)}"
        fail("spatial_shapes", _EXPECTED, got, "Use an integer tensor [L, 2], or a list of int pairs.")
    if tensor.shape[0] == 0:
        _no_levels()
    if torch_names.is_batched(tensor):
        fix = "Map over the rest (in_dims None): all calls share their sizes."
        fail("spatial_shapes", _EXPECTED, "a tensor that torch.vmap maps over", fix)


def _is_usual(tensor: Tensor) -> bool:
    """Return whether a tensor passes all that `_read` judges, by the few questions that take no time."""
    return (
        type(tensor) is Tensor
        and (tensor.dtype is _int64 or tensor.dtype is _int32)
        and tensor.is_cpu
        and tensor.layout is _strided
        and not (tensor.is_nested or _is_compiling() or is_tracing() or torch_names.is_wrapped(tensor))
        and tensor.ndim == 2
        and tensor.size(1) == 2
        and tensor.data_ptr() != 0
    )


def _read(tensor: Tensor) -> list[Any]:
    """Return the numbers of an integer tensor `[L, 2]` of sizes."""
    fix = "Pass a list of int pairs."
    if _is_compiling():
        fail("spatial_shapes", _EXPECTED, "a tensor", f"{fix} Its numbers are not known while a graph is made.")
    _tensor(tensor)
    if tensor.is_meta or is_fake(tensor):
        fail("spatial_shapes", _EXPECTED, f"a {'meta' if tensor.is_meta else 'fake'} tensor without numbers", fix)
    if type(tensor) is Tensor and not torch_names.is_wrapped(tensor) and not tensor.data_ptr():
        fail("spatial_shapes", _EXPECTED, "a tensor without memory", fix)
    return tensor.tolist()
