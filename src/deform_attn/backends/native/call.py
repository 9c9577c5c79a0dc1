"""A call of the CPU kernels (native/): laid out as they take it, made, and registered with torch for the device."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn import torch_names
from deform_attn.backends.native import library
from deform_attn.backends.native.addresses import address
from deform_attn.messages import fail, shape_text
from deform_attn.shape_checks import spatial_shapes_of
from deform_attn.torch_ops import schema

_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

_library, _reasons = library.load()
if torch_names.OPS.missing:
    _library, _reasons = None, [torch_names.OPS.verdict]


def unavailable_reasons() -> list[str]:
    """Return why the kernels cannot be called on this machine; an empty list means that they can."""
    return list(_reasons)


def sample_call(
    value: Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
    interpolation: str,
    padding_mode: str,
) -> "Call":
    """Lay out a call of the classic op, given its arguments."""
    return Call(value, spatial_shapes, num_points, interpolation, padding_mode, sampling_locations, attention_weights)


def attend_call(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    padding_mask: Tensor | None,
    offset_scale: float,
    num_points: Sequence[int],
    interpolation: str,
    padding_mode: str,
) -> "Call":
    """Lay out a call of the op from raw offsets and logits, given its arguments."""
    call = Call(value, spatial_shapes, num_points, interpolation, padding_mode, sampling_offsets, attention_logits)
    call.from_raw(reference_points, padding_mask, offset_scale)
    return call


def _sample_kernels(op: schema.Op) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]]]:
    def forward(*args: Any) -> Tensor:
        return sample_call(*_judged(op, args)).forward()

    def backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
        """Return the gradients of value, sampling_locations and attention_weights; empty where they are not wanted."""
        *call, (want_value, want_locations, want_weights) = args
        wanted = want_value, False, want_locations, want_weights
        grad_value, _, *grads = sample_call(*_judged(op, call)).backward(grad_output, *wanted)
        return grad_value, *grads

    return forward, backward


def _attend_kernels(op: schema.Op) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]]]:
    def forward(*args: Any) -> Tensor:
        return attend_call(*_judged(op, args)).forward()

    def backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
        """Return the gradients of value, references, offsets and logits; empty where they are not wanted."""
        *call, wanted = args
        return attend_call(*_judged(op, call)).backward(grad_output, *wanted)

    return forward, backward


def _judged(op: schema.Op, args: Sequence[Any]) -> Sequence[Any]:
    """Return the arguments of an op, their sizes judged; those in a tensor, which a graph does not know, are read.

    Raises:
        RuntimeError: the numbers in the tensor do not fit; the message is that of the entry points' ValueError.
    """
    op.judge(args)
    value, sizes, *rest = args
    if not isinstance(sizes, Tensor):
        return args
    try:
        return value, schema.flat(spatial_shapes_of(sizes.tolist(), value.shape[1])), *rest
    except ValueError as error:
        raise RuntimeError(str(error)) from None


class Call:
    """One call, laid out as the library wants it; its fields are those of `deform_attn_call`.

    The kernels trust sizes and addresses, and a compiled graph hands both straight to the op. So they are judged here.
    """

    # Of the tensors, as the entry points take them.
    names: Sequence[str] = ("value", "sampling_locations", "attention_weights")

    def __init__(
        self,
        value: Tensor,
        spatial_shapes: Sequence[int],
        num_points: Sequence[int],
        interpolation: str,
        padding_mode: str,
        points: Tensor,
        weights: Tensor,
    ) -> None:
        self.points = _dense(points, 3)  # [N, Q, M, T, 2]
        self.weights = _dense(weights, 2)  # [N, Q, M, T]
        self.references: Tensor | None = None
        self.mask: Tensor | None = None
        self.offset_scale = 0.0
        self.dtype = value.dtype  # of the result
        self.value = value  # [N, S, M, D]
        self.L = len(num_points)
        self.options = int(interpolation == "nearest"), int(padding_mode == "border")
        self.levels, self.levels_kept = library.levels(tuple(spatial_shapes), tuple(num_points))

    def from_raw(self, references: Tensor, mask: Tensor | None, offset_scale: float) -> None:
        """Let points and weights be raw offsets and logits around these references."""
        self.names = "value", "reference_points", "sampling_offsets", "attention_logits", "padding_mask"
        self.references = _dense(references, 1)  # [N, Q, L or 1, 2 or 4]
        self.mask = None if mask is None else _dense(mask, 1)  # [N, S]
        self.offset_scale = offset_scale

    def forward(self) -> Tensor:
        """Return the output `[N, Q, M*D]`."""
        fields = self.fields()
        value = self.value
        output = torch.empty((value.shape[0], self.points.shape[1], value.shape[2] * value.shape[3]), dtype=value.dtype)
        loaded().forward(*fields, address("output", output), 0, 0, 0, 0, 0, 0, 0)
        return output.to(self.dtype)

    def backward(
        self, grad_output: Tensor, want_value: bool, want_references: bool, want_points: bool, want_weights: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of value, references, points and weights, empty where they are not wanted."""
        fields = self.fields()
        value = self.value
        N, _, M, D = value.shape
        grad_output = _dense(grad_output.to(value.dtype), 1)  # [N, Q, M*D]
        _fit("grad_output", grad_output, N, self.points.shape[1], M * D)
        grad_value = torch.empty(value.shape if want_value else 0, dtype=value.dtype)
        grad_points = torch.empty(self.points.shape if want_points else 0, dtype=self.points.dtype)
        grad_weights = torch.empty(self.weights.shape if want_weights else 0, dtype=self.weights.dtype)
        references = self.points if self.references is None else self.references
        grad_references = torch.empty(references.shape if want_references else 0, dtype=references.dtype)
        loaded().backward(
            *fields,
            0,
            address("grad_output", grad_output),
            *grad_output.stride()[:2],
            address("grad_value", grad_value) if want_value else 0,
            address("grad_points", grad_points) if want_points else 0,
            address("grad_weights", grad_weights) if want_weights else 0,
            address("grad_references", grad_references) if want_references else 0,
        )
        return grad_value.to(self.dtype), grad_references, grad_points, grad_weights

    def fields(self) -> tuple[float, ...]:
        """Return the fields up to `output`."""
        points, weights, references, mask = self.points, self.weights, self.references, self.mask
        dtypes = [self.value.dtype, points.dtype, weights.dtype]
        if references is not None:
            dtypes.append(references.dtype)
        double = torch.float64 in dtypes
        if double:
            self.value = self.value.double()  # rare enough for a copy, where it is not float64 itself
        self.value = value = _dense(self.value, 1)
        N, S, M, D = value.shape
        Q, T = points.shape[1], points.shape[3]
        points_name, weights_name = self.names[1:3] if references is None else self.names[2:4]
        _fit(points_name, points, N, Q, M, T, 2)
        _fit(weights_name, weights, N, Q, M, T)
        reference: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0)
        if references is not None:
            n, q, level, _ = references.stride()
            L, size = references.shape[2:]
            _fit("reference_points", references, N, Q, 1 if L == 1 else self.L, 2 if size == 2 else 4)
            at = address("reference_points", references)
            reference = (at, _CODES[references.dtype], n, q, 0 if L == 1 else level, size, L)
        if mask is not None:
            _fit("padding_mask", mask, N, S)
        return (
            N,
            S,
            M,
            D,
            Q,
            T,
            self.L,
            _CODES[value.dtype],
            int(double),
            *self.options,
            torch.get_num_threads(),
            loaded().parallel_for,
            self.levels,
            address("value", value),
            *value.stride()[:3],
            address(points_name, points),
            _CODES[points.dtype],
            *points.stride()[:2],
            address(weights_name, weights),
            _CODES[weights.dtype],
            *weights.stride()[:2],
            *reference,
            0 if mask is None else address("padding_mask", mask),
            0 if mask is None else mask.stride(0),
            self.offset_scale,
        )


def loaded() -> library.NativeLibrary:
    """Return the library of kernels."""
    if _library is None:
        raise RuntimeError("deform_attn: " + "; ".join(_reasons))
    return _library


def _dense(tensor: Tensor, axes: int) -> Tensor:
    """Return `tensor` with its last `axes` axes one after the other without gaps; a copy only where they are not."""
    if not tensor.is_contiguous():
        expected = 1
        for size, stride in zip(reversed(tensor.shape[-axes:]), reversed(tensor.stride()[-axes:]), strict=True):
            if size != 1 and stride != expected:
                return tensor.contiguous()
            expected *= size
    return tensor


def _fit(name: str, tensor: Tensor, *shape: int) -> None:
    if tensor.shape != shape:
        fail(name, shape_text(shape), shape_text(tensor.shape), "Compare it with value and spatial_shapes.")


if _library is not None:
    for _op in schema.SAMPLES:
        schema.register(_op, *_sample_kernels(_op), "CPU")
    for _op in schema.ATTENDS:
        schema.register(_op, *_attend_kernels(_op), "CPU")
