"""The registered ops on tensors of a GPU: judged, launched, and where Triton cannot compile, left to grid_sample."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn import torch_names
from deform_attn.backends.base import SlowBackendWarning, Tensors
from deform_attn.backends.grid_sample import GRID_SAMPLE
from deform_attn.backends.reference import REFERENCE
from deform_attn.backends.triton import deterministic, toolchain
from deform_attn.backends.triton.launch import MOST_IMAGES
from deform_attn.backends.triton.layout import Call, call_of
from deform_attn.backends.triton.prepared import launch_of, launch_of_call
from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs
from deform_attn.messages import fail, shape_text
from deform_attn.torch_ops import schema

# Why kernels could not be compiled, for each device.
failures: dict[torch.device, str] = {}

_BY_TENSOR = schema.SAMPLE_BY_TENSOR, schema.ATTEND_BY_TENSOR


def forward_of(op: schema.Op, twin: bool = False) -> Callable[..., Tensor]:
    """Return the kernel of an op, or of its twin (torch_ops/schema.py)."""
    tensors_of = _tensors_of(op, twin)
    by_tensor = op in _BY_TENSOR

    def forward(*args: Any) -> Tensor:
        launch = launch_of(op, args, twin)
        if args[0].device not in failures:
            try:
                if isinstance(launch, Call):
                    return run_forward(launch)
                return launch.forward(tensors_of(args), args[schema.SIZES] if by_tensor else None)
            except toolchain.KernelUnavailable as error:
                failed(args[0].device, error)
        return _sample_with_torch(op, schema.arguments_of_twin(op, args) if twin else args)

    return forward


def backward_of(op: schema.Op) -> Callable[..., tuple[Tensor, ...]]:
    """Return the kernel of its backward op."""
    tensors_of = _tensors_of(op)
    by_tensor, fused = op in _BY_TENSOR, op in schema.ATTENDS

    def backward(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *given, wanted = args
        launch = launch_of(op, given)
        value, points = given[0], given[op.gradients[-1]]
        N, _, M, D = value.shape
        expected = N, points.shape[1], M * D
        if grad_output.shape != expected:
            fail("grad_output", shape_text(expected), shape_text(grad_output.shape), "Give one of the output's shape.")
        if value.device in failures:
            return _gradients_with_torch(grad_output, op, given, wanted)
        # To a launch the references come last.
        want = (wanted[0], *wanted[2:], wanted[1]) if fused else (*wanted, False)
        try:
            if isinstance(launch, Call):
                grads = run_backward(grad_output, launch, want)
            elif not any(want) or (want[0] and torch.are_deterministic_algorithms_enabled()):
                grads = run_backward(grad_output, call_of(op, given), want)
            else:
                pull = grad_output.to(value.dtype).contiguous()
                grads = launch.backward(pull, tensors_of(given), want, given[schema.SIZES] if by_tensor else None)
        except toolchain.KernelUnavailable as error:
            failed(value.device, error)
            return _gradients_with_torch(grad_output, op, given, wanted)
        made = (grads[0], grads[3], *grads[1:3]) if fused else grads[:3]
        return tuple([given[i].new_empty(0) if g is None else g for i, g in zip(op.gradients, made, strict=True)])

    return backward


def _tensors_of(op: schema.Op, twin: bool = False) -> Callable[[Sequence[Any]], Tensors]:
    """Return what picks the tensors of a launch out of the arguments of an op, or of its twin, which has no sizes."""
    i = 1 if twin else 2
    if op in schema.SAMPLES:
        return lambda args: (args[0], args[i], args[i + 1], None, None)
    return lambda args: (args[0], args[i + 1], args[i + 2], args[i], args[i + 3])


def prepare(inputs: Inputs) -> list[str]:
    """Compile what a judged call needs, forward and backward; return why that cannot be."""
    op = schema.op_of(inputs)
    args = schema.arguments(inputs)
    call = call_of(op, args)
    if not call.value.numel() or not call.points.numel():
        return []
    wanted = [t is not None and torch.is_grad_enabled() and t.requires_grad for t in call.tensors[:4]]
    try:
        launch_of_call(call).prepare(call.tensors, call.sizes if isinstance(call.sizes, Tensor) else None, wanted)
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
    return launch_of_call(call).forward(call.tensors, call.sizes if isinstance(call.sizes, Tensor) else None)


def run_backward(grad_output: Tensor, call: Call, want: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of value, points, weights and references, None where they are not wanted."""
    tensors = call.value, call.points, call.weights, call.references
    N, _, M, D = call.value.shape
    Q, T = call.points.shape[1], call.points.shape[3]
    if not any(want) or not N * Q * M * D * T:
        return [t.new_zeros(t.shape) if w and t is not None else None for t, w in zip(tensors, want, strict=True)]
    if N > MOST_IMAGES:
        parts = [
            run_backward(grad_output[n : n + MOST_IMAGES], _images(call, n), want) for n in range(0, N, MOST_IMAGES)
        ]
        return [torch.cat(grads) if w else None for grads, w in zip(zip(*parts, strict=True), want, strict=True)]
    sizes = call.sizes if isinstance(call.sizes, Tensor) else None
    pull = grad_output.to(call.value.dtype).contiguous()
    if not want[0] or not torch.are_deterministic_algorithms_enabled():
        return launch_of_call(call).backward(pull, call.tensors, want, sizes)
    others = [False, *want[1:]]
    grads = launch_of_call(call).backward(pull, call.tensors, others, sizes) if any(others) else [None] * 4
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


def failed(device: torch.device, error: toolchain.KernelUnavailable) -> None:
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
