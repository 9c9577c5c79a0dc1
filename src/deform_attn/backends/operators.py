"""The two ops as torch knows them, `torch.ops.deform_attn.*`: their signatures, shapes and derivatives.

A backend with compiled kernels registers them for its device with `LIBRARY.impl`. The derivative of a derivative is
that of reference.py: a backward pass that must itself be differentiated takes that slow way, and no other does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from deform_attn import reference
from deform_attn.checks import AttentionInputs, SamplingInputs

LIBRARY = torch.library.Library("deform_attn", "DEF")

_LEVELS = "SymInt[] num_points, str interpolation, str padding_mode"
_SAMPLE = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
_ATTEND = (
    "Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
    "Tensor? padding_mask, float offset_scale"
)
# spatial_shapes are flat: H_1, W_1, H_2, ... Gradients that are not wanted come back empty.
LIBRARY.define(f"multi_scale_deformable_attention({_SAMPLE}, {_LEVELS}) -> Tensor")
LIBRARY.define(f"deformable_attention({_ATTEND}, {_LEVELS}) -> Tensor")
LIBRARY.define(
    "multi_scale_deformable_attention_backward"
    f"(Tensor grad_output, {_SAMPLE}, {_LEVELS}, bool[] wanted) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "deformable_attention_backward"
    f"(Tensor grad_output, {_ATTEND}, {_LEVELS}, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)"
)
_sample = torch.ops.deform_attn.multi_scale_deformable_attention.default
_attend = torch.ops.deform_attn.deformable_attention.default
_sample_backward = torch.ops.deform_attn.multi_scale_deformable_attention_backward.default
_attend_backward = torch.ops.deform_attn.deformable_attention_backward.default


def sample(inputs: SamplingInputs) -> Tensor:
    """Run the classic op through torch's dispatcher."""
    value, shapes, locations, weights, num_points, interpolation, padding_mode = inputs
    return _sample(value, _flat(shapes), locations, weights, num_points, interpolation, padding_mode)


def attend(inputs: AttentionInputs) -> Tensor:
    """Run the op from raw offsets and logits through torch's dispatcher."""
    value, shapes, references, offsets, logits, num_points, mask, offset_scale, interpolation, padding_mode = inputs
    return _attend(
        value,
        _flat(shapes),
        references,
        offsets,
        logits,
        mask,
        float(offset_scale),
        num_points,
        interpolation,
        padding_mode,
    )


def _flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [size for shape in shapes for size in shape]


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


class _Sample(Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor, *options: Any
    ) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.rest = shapes, options
        with torch._C._AutoDispatchBelowAutograd():
            return _sample(value, shapes, locations, weights, *options)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        shapes, options = ctx.rest
        wanted = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
        if torch.is_grad_enabled():

            def again(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
                return reference.multi_scale_deformable_attention(value, _pairs(shapes), locations, weights, *options)

            grads = _differentiable(again, (value, locations, weights), wanted, grad_outputs[0])
        else:
            grads = _sample_backward(grad_outputs[0], value, shapes, locations, weights, *options, wanted)
        grad_value, grad_locations, grad_weights = _wanted(grads, wanted)
        return grad_value, None, grad_locations, grad_weights, None, None, None


class _Attend(Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        shapes: list[int],
        references: Tensor,
        offsets: Tensor,
        logits: Tensor,
        mask: Tensor | None,
        offset_scale: float,
        *options: Any,
    ) -> Tensor:
        ctx.save_for_backward(value, references, offsets, logits, mask)
        ctx.rest = shapes, offset_scale, options
        with torch._C._AutoDispatchBelowAutograd():
            return _attend(value, shapes, references, offsets, logits, mask, offset_scale, *options)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, mask = ctx.saved_tensors
        shapes, offset_scale, options = ctx.rest
        wanted = [ctx.needs_input_grad[i] for i in (0, 2, 3, 4)]
        if torch.is_grad_enabled():

            def again(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
                num_points, *modes = options
                return reference.deformable_attention(
                    value, _pairs(shapes), references, offsets, logits, num_points, mask, offset_scale, *modes
                )

            grads = _differentiable(again, tensors, wanted, grad_outputs[0])
        else:
            value, *points = tensors
            grads = _attend_backward(grad_outputs[0], value, shapes, *points, mask, offset_scale, *options, wanted)
        grad_value, *grad_points = _wanted(grads, wanted)
        return grad_value, None, *grad_points, None, None, None, None, None


def _wanted(grads: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    return [grad if want else None for grad, want in zip(grads, wanted, strict=True)]


def _differentiable(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], wanted: Sequence[bool], grad_output: Tensor
) -> list[Tensor]:
    """Return the gradients of `function` at `tensors` as functions of them and of grad_output."""
    # Aliases, lest a tensor that was computed from another one counts twice.
    aliases = [tensor.view_as(tensor) if want else tensor for tensor, want in zip(tensors, wanted, strict=True)]
    inputs = [alias for alias, want in zip(aliases, wanted, strict=True) if want]
    grads = iter(
        torch.autograd.grad(function(*aliases), inputs, grad_output, create_graph=True, materialize_grads=True)
    )
    return [next(grads) if want else grad_output for want in wanted]


def _sample_autograd(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor, *options: Any) -> Tensor:
    if torch.is_grad_enabled() and (value.requires_grad or locations.requires_grad or weights.requires_grad):
        return _Sample.apply(value, shapes, locations, weights, *options)
    with torch._C._AutoDispatchBelowAutograd():
        return _sample(value, shapes, locations, weights, *options)


def _attend_autograd(value: Tensor, shapes: list[int], *rest: Any) -> Tensor:
    if torch.is_grad_enabled() and (value.requires_grad or any(tensor.requires_grad for tensor in rest[:3])):
        return _Attend.apply(value, shapes, *rest)
    with torch._C._AutoDispatchBelowAutograd():
        return _attend(value, shapes, *rest)


def _fake(value: Tensor, shapes: list[int], points: Tensor, *rest: Any) -> Tensor:
    N, _, M, D = value.shape
    return value.new_empty((N, points.shape[1], M * D))


def _fake_backward(grad_output: Tensor, value: Tensor, shapes: list[int], *rest: Any) -> tuple[Tensor, ...]:
    wanted = rest[-1]
    tensors = (value, *rest[: len(wanted) - 1])
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if want else tensor.new_empty(0)
        for tensor, want in zip(tensors, wanted, strict=True)
    )


LIBRARY.impl("multi_scale_deformable_attention", _sample_autograd, "Autograd")
LIBRARY.impl("deformable_attention", _attend_autograd, "Autograd")
for _name in ("multi_scale_deformable_attention", "deformable_attention"):
    torch.library.register_fake(f"deform_attn::{_name}", _fake, lib=LIBRARY)
    torch.library.register_fake(f"deform_attn::{_name}_backward", _fake_backward, lib=LIBRARY)
