"""A plan: a call of the CPU kernels that is made again with other tensors of the same metadata."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deform_attn.backends.base import Tensors
from deform_attn.backends.native import call as native_call
from deform_attn.backends.native import library
from deform_attn.backends.native.addresses import extent, plain_address
from deform_attn.checks import AttentionInputs, Inputs
from deform_attn.torch_ops import schema

# Where the fields of a call hold addresses, and what else is not metadata (see native/include/deform_attn.h).
_THREADS, _VALUE, _POINTS, _WEIGHTS, _REFERENCES, _MASK, _OUTPUT = 11, 14, 18, 22, 26, 33, 36


def plan(inputs: Inputs, tensors: Tensors) -> "Plan | None":
    """Return the plan of a judged call, or None where the kernels read copies of its `tensors`."""
    made = Plan(inputs, tensors)
    return made if made.reads(tensors) else None


class Plan:
    """A call without its tensors: as the kernels take it, and as the ops do."""

    def __init__(self, inputs: Inputs, tensors: Tensors) -> None:
        args, self._op = schema.arguments(inputs), schema.op_of(inputs)
        if isinstance(inputs, AttentionInputs):
            self._places: tuple[int, ...] = (_VALUE, _REFERENCES, _POINTS, _WEIGHTS, _MASK)
            call: native_call.Call = native_call.attend_call(*args)
        else:
            self._places = _VALUE, _POINTS, _WEIGHTS
            call = native_call.sample_call(*args)
        self._fields = [*call.fields(), *[0] * 8]
        self._names = call.names
        self._extents = [0 if tensor is None else extent(tensor) for tensor in tensors]
        self._levels_kept = call.levels_kept
        N, _, M, D = inputs.value.shape
        self._output_shape = N, call.points.shape[1], M * D
        # The ops know one form of each tensor, without an axis for the levels' points and with one for the references.
        self._shapes = [None if args[i] is None else args[i].shape for i in self._op.tensors]
        self._args = [None if i in self._op.tensors else arg for i, arg in enumerate(args)]

    def reads(self, tensors: Tensors) -> bool:
        """Return whether the kernels read these tensors themselves, whose call it was made of, and not copies."""
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        there = [tensor is None or needed > 0 for tensor, needed in zip(tensors, self._extents, strict=True)]
        return all(there) and [self._fields[place] for place in self._places] == addresses

    def forward(self, tensors: Tensors) -> Tensor:
        """Return the output `[N, Q, M*D]`."""
        output = tensors[0].new_empty(*self._output_shape)  # type: ignore[union-attr]  # the first one is value
        fields = self._fields.copy()  # other threads may be at it, too
        for name, place, needed, tensor in zip(self._names, self._places, self._extents, tensors, strict=True):
            if tensor is not None:
                fields[place] = plain_address(name, tensor, needed)
        fields[_THREADS] = torch.get_num_threads()
        fields[_OUTPUT] = output.data_ptr()  # just made
        native_call.loaded().forward_packed(library.pack(*fields))
        return output

    def backward(self, grad_output: Tensor, tensors: Tensors, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Return the gradients of all tensors, None where not wanted."""
        args = self._args.copy()
        for i, shape, tensor in zip(self._op.tensors, self._shapes, tensors, strict=True):
            args[i] = tensor if tensor is None or shape is None or tensor.shape == shape else tensor.reshape(shape)
        grads = self._op.backward(grad_output, *args, wanted[: len(self._op.gradients)])  # the mask, last, has none
        result: list[Tensor | None] = [None] * len(tensors)
        for i, (grad, tensor) in enumerate(zip(grads, tensors, strict=False)):
            if wanted[i] and tensor is not None:
                result[i] = grad if grad.shape == tensor.shape else grad.reshape(tensor.shape)
        return result
