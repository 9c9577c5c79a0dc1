"""Calls that are remembered: what was judged once about a kind of call is not judged again, whatever the device.

The checks, the choice of a backend and torch's dispatcher look at metadata only, and cost more than a small call's
kernel. So a call of a kind (kinds.py) that passed before goes straight to the twin of its op (torch_ops/schema.py),
which has the kernels of devices and nothing around them, or, where those are Python's, to them at once
(`Backend.direct`); autograd, where it has something to record, is told here. While anything else is at work that would
have to see the op (a transform, a mode, a tracer), every call takes the long way.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, is_grad_enabled

from deform_attn.backends.base import Backend, Tensors
from deform_attn.backends.kinds import Kind, Kinds, is_alone, is_plain
from deform_attn.checks import Inputs
from deform_attn.torch_names import DispatchKey, is_key_excluded
from deform_attn.torch_ops import autograd, schema

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
        self._has_gradients = any(tensor is not None and tensor.requires_grad for tensor in tensors)

    def __call__(self, tensors: Tensors) -> Tensor:
        if self._has_gradients and is_grad_enabled():
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
        if self._direct is not None and not is_grad_enabled() and is_alone():
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


_calls: Kinds[_Call] = Kinds()  # that passed all checks


def recall(kind: Kind) -> _Call | None:
    """Return what runs calls of a kind, or None where none was remembered."""
    return _calls.find(kind)


def remember(kind: Kind, inputs: Inputs, tensors: Tensors, backend: Backend) -> Tensor | None:
    """Remember that a call of this kind passed all checks, as `inputs`, and runs by its op, and return its output.

    Or None, where the op has to see it.
    """
    if not is_plain(kind):
        return None
    call = _Call(inputs, tensors, backend)
    _calls.add(kind, call)
    return call.first(tensors)
