"""torch.jit.trace: while it records, sizes of tensors are tensors; calls are judged as if they were numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn import torch_names
from deform_attn.tensor_checks import INT_DTYPES
from deform_attn.whole_numbers import is_int, is_list


@contextmanager
def paused() -> Iterator[None]:
    """Within the block torch.jit.trace records nothing, and sizes of tensors are ints."""
    if torch_names.TRACING.missing:
        raise RuntimeError(
            f"torch.jit.trace cannot record deformable attention: {torch_names.TRACING.verdict}. Use torch.export."
        )
    state = torch_names.get_tracing_state()
    torch_names.set_tracing_state(None)
    try:
        yield
    finally:
        torch_names.set_tracing_state(state)


def fixed_size(tensor: Tensor, axis: int) -> int:
    """Return a size that decides what is computed, and so is a constant of a trace."""
    if is_tracing():
        with paused():
            return tensor.shape[axis]
    return tensor.shape[axis]


def expanded(tensor: Tensor, *leading: Any) -> Tensor:
    """Return a tensor with its first axes, of which each may have one entry for all, as long as `leading`.

    Where they do not fit it is returned as it is.
    """
    with paused():
        fits = all(size in (1, int(wanted)) for size, wanted in zip(tensor.shape, leading, strict=False))
    return tensor.expand(*leading, *(-1,) * (tensor.ndim - len(leading))) if fits else tensor


def sizes(spatial_shapes: Any) -> Any:
    """Return sizes of maps as a trace can leave them free: pairs that hold a tensor as one tensor `[L, 2]`.

    Pairs of ints become constants of the trace. They are returned as they are, as is what is wrong.
    """
    if isinstance(spatial_shapes, Tensor):
        narrow = spatial_shapes.dtype in INT_DTYPES and spatial_shapes.dtype not in (torch.int64, torch.int32)
        return spatial_shapes.long() if narrow else spatial_shapes
    if not is_list(spatial_shapes) or not all(is_list(pair) and len(pair) == 2 for pair in spatial_shapes):
        return spatial_shapes
    sides = [side for pair in spatial_shapes for side in pair]
    if not any(isinstance(side, Tensor) for side in sides) or not all(map(_is_side, sides)):
        return spatial_shapes
    # Filled, since torch warns of a tensor made of a number.
    tensors = [side if isinstance(side, Tensor) else torch.full((), side, dtype=torch.int64) for side in sides]
    return torch.stack(tensors).unflatten(0, (-1, 2))


def counts(num_points: Any) -> Any:
    """Return counts of points as ints, constants of the trace, where they were taken from the shape of a tensor."""
    if is_list(num_points):
        return [counts(count) for count in num_points]
    if isinstance(num_points, Tensor) and _is_side(num_points):
        with paused():
            return num_points.item()
    return num_points


def not_for_onnx() -> NoReturn:
    """Refuse the exporter to ONNX that is made of torch.jit.trace."""
    fix = "Use deform_attn.export.to_onnx, or torch.onnx.export with dynamo=True."
    raise ValueError(f"torch.onnx.export(dynamo=False) cannot write deformable attention. {fix}")


def not_for_script(module: Any) -> NoReturn:
    """Refuse torch.jit.script, which compiles the source of Python, of a module."""
    fix = "Put torch.jit.trace of it in its place first, then script the model around it (docs/torchscript.md)."
    raise TypeError(f"torch.jit.script cannot compile {type(module).__name__}. {fix}")


def _is_side(side: Any) -> bool:
    if isinstance(side, Tensor):
        return side.ndim == 0 and side.dtype in INT_DTYPES
    return is_int(side)
