"""The registered ops on tensors of a GPU: judged, launched, and where Triton cannot compile, left to grid_sample."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn import torch_names
from deform_attn.backends.base import SlowBackendWarning
from deform_attn.backends.grid_sample import GRID_SAMPLE
from deform_attn.backends.reference import REFERENCE
from deform_attn.backends.triton import deterministic, toolchain
from deform_attn.backends.triton.launch import MOST_IMAGES, launch_of
from deform_attn.backends.triton.layout import Call, call_of
from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs
from deform_attn.messages import fail, shape_text
from deform_attn.shape_checks import spatial_shapes_of
from deform_attn.torch_ops import schema

# Why kernels could not be compiled, for each device.
failures: dict[torch.device, str] = {}


def forward_of(op: schema.Op) -> Callable[..., Tensor]:
    """Return the kernel of an op."""

    def forward(*args: Any) -> Tensor:
        _judge(op, args)
        call = call_of(op, args)
        if call.value.device not in failures:
            try:
                return run_forward(call)
            except toolchain.KernelUnavailable as error:
                _failed(call.value.device, error)
        return _sample_with_torch(op, args)

    return forward


def backward_of(op: schema.Op) -> Callable[..., tuple[Tensor, ...]]:
    """Return the kernel of its backward op."""

    def backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *given, wanted = args
        _judge(op, given)
        call = call_of(op, given)
        N, _, M, D = call.value.shape
        expected = N, call.points.shape[1], M * D
        if grad_output.shape != expected:
            fail("grad_output", shape_text(expected), shape_text(grad_output.shape), "Give one of the output's shape.")
        if call.value.device not in failures:
            try:
                return run_backward(grad_output, call, wanted, op)
            except toolchain.KernelUnavailable as error:
                _failed(call.value.device, error)
        return _gradients_with_torch(grad_output, op, given, wanted)

    return backward


def prepare(inputs: Inputs) -> list[str]:
    """Compile what a judged call needs, forward and backward; return why that cannot be."""
    op = schema.op_of(inputs)
    args = schema.arguments(inputs)
    call = call_of(op, args)
    if not call.value.numel() or not call.points.numel():
        return []
    wanted = [t is not None and torch.is_grad_enabled() and t.requires_grad for t in call.tensors[:4]]
    try:
        launch_of(call).prepare(call.tensors, call.sizes if isinstance(call.sizes, Tensor) else None, wanted)
    except toolchain.KernelUnavailable as error:
        if toolchain.is_capturing(call.value.device):
            raise
        failures[call.value.device] = str(error)
        return [str(error)]
    return []


def run_forward(call: Call) -> Tensor:
    """Return the output `[N, Q, M*D]`."""
    N, _, M, D = call.value.shape
    Q, T = call.points.shape[1], call.points.shape[3]
    if not N * Q * M * D:
        return call.value.new_empty((N, Q, M * D))
    if not T:
        return call.value.new_zeros((N, Q, M * D))
    if N > MOST_IMAGES:
        return torch.cat([run_forward(_images(call, n)) for n in range(0, N, MOST_IMAGES)])
    sizes = call.sizes if isinstance(call.sizes, Tensor) else None
    return launch_of(call).forward(call.tensors, sizes)


def run_backward(grad_output: Tensor, call: Call, wanted: Sequence[bool], op: schema.Op) -> tuple[Tensor, ...]:
    """Return the gradients in the order of the op, empty where they are not wanted."""
    fused = op in schema.ATTENDS
    want_value, *others = wanted
    want = (want_value, *others[1:], others[0]) if fused else (want_value, *others, False)
    grads = _gradients(grad_output, call, want)
    empty = [call.value.new_empty(0), call.points.new_empty(0), call.weights.new_empty(0)]
    if fused:
        assert call.references is not None
        empty.append(call.references.new_empty(0))
    made = [none if grad is None else grad for grad, none in zip(grads, empty, strict=False)]
    return (made[0], made[3], made[1], made[2]) if fused else tuple(made)


def _gradients(grad_output: Tensor, call: Call, want: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of value, points, weights and references, None where they are not wanted."""
    tensors = call.value, call.points, call.weights, call.references
    N, _, M, D = call.value.shape
    Q, T = call.points.shape[1], call.points.shape[3]
    if not any(want) or not N * Q * M * D * T:
        return [t.new_zeros(t.shape) if w and t is not None else None for t, w in zip(tensors, want, strict=True)]
    if N > MOST_IMAGES:
        parts = [_gradients(grad_output[n : n + MOST_IMAGES], _images(call, n), want) for n in range(0, N, MOST_IMAGES)]
        return [torch.cat(grads) if w else None for grads, w in zip(zip(*parts, strict=True), want, strict=True)]
    sizes = call.sizes if isinstance(call.sizes, Tensor) else None
    pull = grad_output.to(call.value.dtype).contiguous()
    if not want[0] or not torch.are_deterministic_algorithms_enabled():
        return launch_of(call).backward(pull, call.tensors, want, sizes)
    others = [False, *want[1:]]
    grads = launch_of(call).backward(pull, call.tensors, others, sizes) if any(others) else [None] * 4
    return [deterministic.grad_value(pull, call), *grads[1:]]


def _images(call: Call, n: int) -> Call:
    """Return the call for so many images as a grid of programs has room for, from image n."""
    part = slice(n, n + MOST_IMAGES)
    return call._replace(
        value=call.value[part],
        points=call.points[part],
        weights=call.weights[part],
        references=None if call.references is None else call.references[part],
        mask=None if call.mask is None else call.mask[part],
    )


def _judge(op: schema.Op, args: Sequence[Any]) -> None:
    """Judge the sizes of a call: graphs and callers by name hand them straight to the op."""
    op.judge(args)
    value, sizes = args[0], args[schema.SIZES]
    if isinstance(sizes, Tensor):
        if sizes.device.type == "cpu" and value.device.type != "cpu":
            pairs = spatial_shapes_of(sizes.tolist())
            _fit(pairs, value)
    else:
        _fit(tuple(zip(sizes[::2], sizes[1::2], strict=True)), value)


def _fit(pairs: Sequence[tuple[int, int]], value: Tensor) -> None:
    total = 0
    for H, W in pairs:
        total += H * W
        if H < 0 or W < 0:
            total = -1
            break
    if total != value.shape[1]:
        spatial_shapes_of(pairs, value.shape[1])


def _failed(device: torch.device, error: toolchain.KernelUnavailable) -> None:
    """Note that kernels do not compile for a device, and warn; a CUDA graph has nothing to fall back on."""
    if toolchain.is_capturing(device):
        raise error
    failures[device] = str(error)
    message = f"deform_attn runs the slow backend 'grid_sample' on {device}: {error}."
    warnings.warn(message, SlowBackendWarning, stacklevel=2)


def inputs_of(op: schema.Op, args: Sequence[Any]) -> Inputs:
    """Return the arguments of an op as a judged call."""
    named = dict(zip(op.names, args, strict=True))
    named["spatial_shapes"] = schema.sizes_of(named["spatial_shapes"])
    named["num_points"] = tuple(named["num_points"])
    return SamplingInputs(**named) if op in schema.SAMPLES else AttentionInputs(**named)


def _sample_with_torch(op: schema.Op, args: Sequence[Any]) -> Tensor:
    inputs = inputs_of(op, args)
    chosen = REFERENCE if GRID_SAMPLE.unsupported_reasons(inputs) else GRID_SAMPLE
    return chosen.sample(inputs) if isinstance(inputs, SamplingInputs) else chosen.attend(inputs)


def _gradients_with_torch(
    grad_output: Tensor, op: schema.Op, args: Sequence[Any], wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Return the gradients that autograd makes of grid_sample; an op's kernel runs below autograd, so back to it."""
    args = list(args)
    for i, want in zip(op.gradients, wanted, strict=True):
        args[i] = args[i].detach().requires_grad_(want)
    leaves = [args[i] for i, want in zip(op.gradients, wanted, strict=True) if want]
    autograd = torch_names.DispatchKey.AutogradFunctionality
    with torch_names.SettingExcluded(autograd, False), torch.enable_grad():
        output = _sample_with_torch(op, args)
        grads = iter(torch.autograd.grad(output, leaves, grad_output, allow_unused=True, materialize_grads=True))
    return tuple(next(grads) if want else args[i].new_empty(0) for i, want in zip(op.gradients, wanted, strict=True))
