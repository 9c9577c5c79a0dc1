"""Kernels of the ops that hand each call to the library as a row of numbers (see native/include/deform_attn.h).

For a torch whose C interface lacks a function that the library needs to register its own. They cost more time a call.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn.backends.native.library import NativeLibrary, row_of
from deform_attn.checks import INTERPOLATIONS, PADDING_MODES
from deform_attn.messages import fail
from deform_attn.shape_checks import spatial_shapes_of
from deform_attn.torch_ops import schema

_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def kernels(library: NativeLibrary, op: schema.Op) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]]]:
    """Return the kernels of an op and of its backward op."""

    def forward(*args: Any) -> Tensor:
        head, arrays, dtype = laid_out(library, op, args, backward=False)
        value, points = arrays[0], arrays[2]
        N, _, M, D = value.shape
        output = torch.empty((N, points.shape[1], M * D), dtype=value.dtype)
        library.run_row(row_of([*head, output.data_ptr()]))
        return output.to(dtype)

    def backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *call, wanted = args
        if len(wanted) != len(op.gradients):
            fix = "Compare it with the op's results."
            expected = f"{len(op.gradients)} bools, one for each gradient"
            fail("wanted", expected, str(len(wanted)), fix, RuntimeError)
        head, arrays, dtype = laid_out(library, op, call, backward=True)
        _judge_memory("grad_output", grad_output)
        grad_output = grad_output.to(arrays[0].dtype).contiguous()
        differentiable = [array for array in arrays[:4] if array is not None]
        grads = [
            torch.empty_like(array) if want else array.new_empty(0)
            for array, want in zip(differentiable, wanted, strict=True)
        ]
        addresses = [_start(grad) if want else 0 for grad, want in zip(grads, wanted, strict=True)]
        if arrays[1] is None:  # the classic op has no reference points
            addresses.insert(1, 0)
        library.run_row(row_of([*head, *_array(grad_output), *addresses]))
        return grads[0].to(dtype), *grads[1:]

    return forward, backward


def twin(library: NativeLibrary, op: schema.Op) -> Callable[..., Tensor]:
    """Return the kernel of the twin of an op."""
    forward, _ = kernels(library, op)
    return lambda *args: forward(*schema.arguments_of_twin(op, args))


def laid_out(library: NativeLibrary, op: schema.Op, args: Sequence[Any], backward: bool) -> tuple[list[int], Any, Any]:
    """Return the row of a call up to its results, the tensors that it reads, and the dtype of the output."""
    op.judge(args)
    given = dict(zip(op.names, args, strict=True))
    raw = op in schema.ATTENDS
    points, weights = ("sampling_offsets", "attention_logits") if raw else ("sampling_locations", "attention_weights")
    names = "value", "reference_points", points, weights, "padding_mask"
    tensors: list[Any] = [given.get(name) for name in names]
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is not None:
            _judge_memory(name, tensor)
    if tensors[-1] is not None and tensors[-1].dtype != torch.bool:
        fail("padding_mask", "dtype bool", "another one", "Use padding_mask.bool(); True marks padding.", RuntimeError)
    for name, known in (("interpolation", INTERPOLATIONS), ("padding_mode", PADDING_MODES)):
        if given[name] not in known:
            expected, fix = "one of " + ", ".join(map(repr, known)), f"Leave it out for the default, {known[0]!r}."
            fail(name, expected, repr(given[name])[:82], fix, RuntimeError)
    dtype = tensors[0].dtype
    if any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors):
        tensors[0] = tensors[0].double()
    tensors = [tensor if tensor is None else tensor.contiguous() for tensor in tensors]
    shapes, counts = given["spatial_shapes"], given["num_points"]
    if isinstance(shapes, Tensor):
        try:
            shapes = schema.flat(spatial_shapes_of(shapes.tolist(), tensors[0].shape[1]))
        except ValueError as error:
            raise RuntimeError(str(error)) from None
    (scale,) = struct.unpack("=q", struct.pack("=d", given.get("offset_scale", 0.0)))
    options = given["interpolation"] == "nearest", given["padding_mode"] == "border"
    head = [int(raw), int(backward), torch.get_num_threads(), library.parallel_for(), *map(int, options), scale]
    head += [len(shapes), *shapes, len(counts), *counts]
    for tensor in tensors:
        head += _array(tensor)
    return head, tensors, dtype


def _judge_memory(name: str, tensor: Tensor) -> None:
    """Judge whether the memory of a tensor holds its numbers: torch has tensors whose memory was freed or shrunk."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    held = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.itemsize
    if tensor.numel() and held < (last + 1) * tensor.itemsize:
        expected = f"a tensor of {(last + 1) * tensor.itemsize} bytes in memory"
        got = f"a storage of {max(held, 0)} bytes" if tensor.data_ptr() else "one without memory"
        fail(name, expected, got, "Allocate it again: its storage was freed or resized.", RuntimeError)


def _array(tensor: Tensor | None) -> list[int]:
    """Return a tensor without gaps as its address, dtype, rank and sizes."""
    if tensor is None:
        return [0, -1, -1]
    return [tensor.data_ptr(), _CODES.get(tensor.dtype, -1), tensor.ndim, *tensor.shape]


def _start(tensor: Tensor) -> int:
    """Return the address of a tensor, which is not 0 where it has no numbers."""
    return tensor.data_ptr() or ctypes.sizeof(ctypes.c_int64)
