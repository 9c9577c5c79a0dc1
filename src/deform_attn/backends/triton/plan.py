"""A plan: a call of the GPU kernels that is made again with other tensors of the same metadata."""

from collections.abc import Sequence

from torch import Tensor

from deform_attn.backends.base import Tensors
from deform_attn.backends.triton import ops, toolchain
from deform_attn.backends.triton.launch import launch_of
from deform_attn.backends.triton.layout import call_of
from deform_attn.checks import Inputs
from deform_attn.torch_ops import schema


def plan(inputs: Inputs, tensors: Tensors) -> "Plan | None":
    """Return the plan of a judged call, or None where the kernels would read copies of its `tensors`."""
    N, _, M, D = inputs.value.shape
    if isinstance(inputs.spatial_shapes, Tensor) or not N * M * D or inputs.value.device in ops.failures:
        return None
    made = Plan(inputs, tensors)
    return made if made.is_direct else None


class Plan:
    """A call without its tensors: its launch, and the op for what the launch does not do."""

    def __init__(self, inputs: Inputs, tensors: Tensors) -> None:
        args, self._op = schema.arguments(inputs), schema.op_of(inputs)
        call = call_of(self._op, args)
        self._fused = self._op in schema.ATTENDS
        read: Tensors = call.value, call.references, call.points, call.weights, call.mask
        read = read if self._fused else (call.value, call.points, call.weights)
        there = [t.data_ptr() if t is not None and t.numel() else 0 for t in read]
        given = [t.data_ptr() if t is not None and t.numel() else 0 for t in tensors]
        self.is_direct = there == given and all(t is None or at for t, at in zip(read, there, strict=True))
        self._shapes = [None if args[i] is None else args[i].shape for i in self._op.tensors]
        self._args = [None if i in self._op.tensors else arg for i, arg in enumerate(args)]
        self._launch = launch_of(call)

    def forward(self, tensors: Tensors) -> Tensor:
        """Return the output `[N, Q, M*D]`."""
        if self._fused:
            value, references, points, weights, mask = tensors
        else:
            (value, points, weights), references, mask = tensors, None, None
        try:
            return self._launch.forward((value, points, weights, references, mask))
        except toolchain.KernelUnavailable:
            output: Tensor = self._op.forward(*self._with(tensors))  # which says so, and falls back
            return output

    def backward(self, grad_output: Tensor, tensors: Tensors, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Return the gradients of all tensors, None where not wanted."""
        grads = self._op.backward(grad_output, *self._with(tensors), wanted[: len(self._op.gradients)])
        result: list[Tensor | None] = [None] * len(tensors)
        for i, (grad, tensor) in enumerate(zip(grads, tensors, strict=False)):
            if wanted[i] and tensor is not None:
                result[i] = grad if grad.shape == tensor.shape else grad.reshape(tensor.shape)
        return result

    def _with(self, tensors: Tensors) -> list[object]:
        args = self._args.copy()
        for i, shape, tensor in zip(self._op.tensors, self._shapes, tensors, strict=True):
            args[i] = tensor if tensor is None or shape is None or tensor.shape == shape else tensor.reshape(shape)
        return args
