"""Calls that are remembered: what was judged once about a kind of call is not judged again, whatever the device.

The checks, the choice of a backend and torch's dispatcher look at metadata only, and cost more than a small call's
kernel. So a call whose metadata passed before goes straight to the twin of its op (torch_ops/schema.py), which has the
kernels of devices and nothing around them, or, where those are Python's, to them at once (`Backend.direct`); autograd,
where it has something to record, is told here. While anything
else is at work that would have to see the op (a transform, a mode, a tracer), every call takes the long way.

Where numbers lie, and with which strides and sign, is no part of a kind of call: the kernels look at that each time.

No tensor is kept, and no number of one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn.backends.base import Backend, Tensors
from deform_attn.backends.kept import Kept
from deform_attn.checks import Inputs
from deform_attn.torch_names import (
    REMEMBERED,
    DispatchKey,
    included_keys,
    is_forward_mode_on,
    is_function_mode_on,
    is_key_excluded,
    nothing_included,
)
from deform_attn.torch_ops import autograd, schema

Key = tuple[Any, ...]

_calls: Kept[Key, "_Call"] = Kept()

_OPTION_TYPES = str, float, int

# Looking a name up in torch takes as long as some of these questions do.
_Parameter, _strided = torch.nn.Parameter, torch.strided
_is_compiling, _is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
_NOTHING_INCLUDED = nothing_included()
_AUTOGRAD = getattr(DispatchKey, "AutogradCPU", None)  # stands for those of all devices


class _Call:
    """A judged call without its tensors."""

    def __init__(self, inputs: Inputs, tensors: Tensors, backend: Backend) -> None:
        self._direct = backend.direct(inputs, tensors)
        self._op, args = schema.op_of(inputs), schema.arguments(inputs)
        self._options = schema.judged_options(inputs)
        # The op knows one form of each tensor, without an axis for the levels' points and with one for the references.
        self._shapes = [
            None if tensor is None or args[i].shape == tensor.shape else args[i].shape
            for i, tensor in zip(self._op.tensors, tensors, strict=True)
        ]
        self._args = [None if i in self._op.tensors else arg for i, arg in enumerate(args)]

    def __call__(self, tensors: Tensors) -> Tensor:
        if _is_grad_enabled():
            for tensor in tensors:
                if tensor is not None and tensor.requires_grad:
                    if is_key_excluded(_AUTOGRAD):  # inside another op's kernel, where autograd must not record
                        return self._op.forward(*self._arguments(tensors))
                    return _Recorded.run(self, *tensors)
        return self.forward(tensors)

    # The call that is remembered runs as all later ones do, so that autograd keeps the same of each (checkpoints).
    first = __call__

    def forward(self, tensors: Tensors) -> Tensor:
        """Return the output, of which autograd knows nothing."""
        if self._direct is not None and (output := self._direct.forward(tensors)) is not None:
            return output
        return self._op.judged(*tensors, *self._options)

    def backward(self, grad_output: Tensor, tensors: Tensors, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """Return the gradients of all tensors, None where not wanted; through torch's dispatcher if anybody looks."""
        if self._direct is not None and not _is_grad_enabled() and _is_alone():
            found = self._direct.backward(grad_output, tensors, wanted)
            if found is not None:
                return found
        grads = self._op.backward(grad_output, *self._arguments(tensors), wanted[: len(self._op.gradients)])
        result: list[Tensor | None] = [None] * len(tensors)  # the mask, last, has none
        for i, (grad, shape, tensor) in enumerate(zip(grads, self._shapes, tensors, strict=False)):
            if wanted[i] and tensor is not None:
                result[i] = grad if shape is None else grad.reshape(tensor.shape)
        return result

    def _arguments(self, tensors: Tensors) -> list[Any]:
        args = self._args.copy()
        for i, shape, tensor in zip(self._op.tensors, self._shapes, tensors, strict=True):
            args[i] = tensor if tensor is None or shape is None else tensor.reshape(shape)
        return args


class _Recorded(autograd.Function):
    """A remembered call that autograd records."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor | None) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return call.forward(tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_output, tensors, (_, *wanted) = grad_outputs[0], ctx.saved_tensors, ctx.needs_input_grad
        if grad_output is None:
            return (None,) * len(ctx.needs_input_grad)
        return None, *ctx.call.backward(grad_output, tensors, wanted)


def key(backend: str | None, tensors: Sequence[Any], spatial_shapes: Any, num_points: Any, *options: Any) -> Key | None:
    """Return all that checks and the choice of a backend look at in a call, or None where it must take the long way."""
    if not _is_alone():
        return None
    # Types exactly, here and below, since to a dict 1, 1.0 and True are the same, but to the checks they are not.
    pairs, counts = _pairs(spatial_shapes), num_points if num_points is None else _counts(num_points)
    if pairs == () or counts == ():
        return None
    result = [backend, pairs, counts, *options]
    for option in options:
        if type(option) not in _OPTION_TYPES:
            return None
    for tensor in tensors:
        if tensor is None:
            result.append(None)
        elif (type(tensor) is Tensor or type(tensor) is _Parameter) and not tensor.is_nested:
            result += tensor.shape, tensor.dtype, tensor.device
            if tensor.layout is not _strided:
                return None
        else:
            return None
    return tuple(result)


def remember(key: Key, inputs: Inputs, tensors: Tensors, backend: Backend) -> Tensor:
    """Remember that a call with this key passed all checks, as `inputs`, and runs by its op; return its output."""
    return _calls.keep(key, _Call(inputs, tensors, backend)).first(tensors)


def recall(key: Key) -> Callable[[Tensors], Tensor] | None:
    """Return what runs calls with this key, or None where none was remembered."""
    return _calls.get(key)


def _is_alone() -> bool:
    """Return whether nothing is at work that would have to see an op: no mode, transform or tracer."""
    return not (
        REMEMBERED.missing
        or _is_compiling()
        or included_keys().raw_repr() not in _NOTHING_INCLUDED
        or is_function_mode_on()
        or is_forward_mode_on()
    )


def _counts(num_points: Any) -> Any:
    """Return counts of points that can be looked up, or ()."""
    if type(num_points) is int:
        return num_points
    if type(num_points) not in (list, tuple):
        return ()
    for count in num_points:
        if type(count) is not int:
            return ()
    return tuple(num_points)


def _pairs(spatial_shapes: Any) -> tuple[int, ...]:
    """Return spatial shapes that can be looked up, flat, or ()."""
    if type(spatial_shapes) not in (list, tuple):
        return ()
    result = []
    for pair in spatial_shapes:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            return ()
        H, W = pair
        if type(H) is not int or type(W) is not int:
            return ()
        result += pair
    return tuple(result)
