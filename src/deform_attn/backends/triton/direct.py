"""A remembered call that goes straight to its launch: torch's dispatcher would only lead back to Python.

What its tensors look like was judged and is that of its kind (backends/kinds.py). In a backward pass hooks may have
given back others, so they are looked at again: those that are negated, efficient zeros or wrappers are for the
dispatcher, as is a call that a profiler wants to see.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn import torch_names
from deform_attn.backends.base import Tensors
from deform_attn.backends.kept import Kept
from deform_attn.backends.triton import ops, toolchain
from deform_attn.backends.triton.launch import Launch
from deform_attn.backends.triton.layout import Call
from deform_attn.backends.triton.prepared import launch_of
from deform_attn.checks import AttentionInputs, Inputs
from deform_attn.torch_ops import schema

# Looking a name up in a module takes as long as some of these questions do.
_is_profiler_on, _is_deterministic = torch_names.is_profiler_on, torch.are_deterministic_algorithms_enabled


class DirectCall:
    """A kind of call, and its launches by the strides of its tensors."""

    def __init__(self, inputs: Inputs, tensors: Tensors) -> None:
        self._kinds = _kinds_of(tensors)
        self._op, self._options = schema.op_of(inputs), schema.judged_options(inputs)
        self._fused = isinstance(inputs, AttentionInputs)
        self._device = inputs.value.device
        self._launches: Kept[tuple[Any, ...], Launch] = Kept()
        self._is_plain = None not in [0 if tensor is None else _address_of(tensor) for tensor in tensors]
        self._forward: Launch | None = None

    def forward(self, tensors: Tensors) -> Tensor | None:
        """Return the output, or None where the op has to see the call."""
        if _is_profiler_on() or not self._is_plain or self._device in ops.failures:
            return None
        launch = self._forward
        if launch is None:
            launch = self._forward = self._launch_of(tensors)
            if launch is None:
                self._is_plain = False
                return None
        given = self._in_order(tensors)
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in given]
        if 0 in addresses:  # the memory of a tensor was given back, though not its shape
            return None
        try:
            return launch.forward(given, None, addresses)
        except toolchain.KernelUnavailable as error:
            ops.failed(self._device, error)
            return None

    def backward(self, grad_output: Tensor, tensors: Tensors, wanted: Sequence[bool]) -> Sequence[Tensor | None] | None:
        """Return the gradients of all tensors, or None where the op has to see the call."""
        if wanted[0] and _is_deterministic():
            return None
        if _kinds_of(tensors) != self._kinds:  # hooks on saved tensors may give back any others
            return None
        if _is_profiler_on() or self._device in ops.failures or _address_of(grad_output) is None:
            return None
        for tensor in tensors:
            if tensor is not None and _address_of(tensor) is None:
                return None
        launch = self._launch_of(tensors)
        if launch is None:
            return None
        given = self._in_order(tensors)
        want = (wanted[0], wanted[2], wanted[3], wanted[1]) if self._fused else (*wanted, False)
        try:
            grads = launch.backward(grad_output.to(launch.dtype).contiguous(), given, want)
        except toolchain.KernelUnavailable as error:
            ops.failed(self._device, error)
            return None
        return (grads[0], grads[3], grads[1], grads[2], None) if self._fused else grads[:3]

    def _in_order(self, tensors: Tensors) -> Tensors:
        """Return value, points, weights, references and mask."""
        if self._fused:
            value, references, points, weights, mask = tensors
            return value, points, weights, references, mask
        return *tensors, None, None

    def _launch_of(self, tensors: Tensors) -> Launch | None:
        """Return the launch for tensors with these strides, or None where it would need copies of them."""
        strides = tuple([tensor.is_contiguous() or tensor.stride() for tensor in tensors if tensor is not None])
        launch = self._launches.get(strides)
        if launch is None:
            found = launch_of(self._op, [*tensors, *self._options], twin=True)
            if isinstance(found, Call):
                return None
            launch = self._launches.keep(strides, found)
        return launch


def direct_of(inputs: Inputs, tensors: Tensors) -> DirectCall | None:
    """Return what runs calls like a judged one, or None where torch cannot say whether a profiler is on."""
    return None if torch_names.DIRECT.missing else DirectCall(inputs, tensors)


def _kinds_of(tensors: Tensors) -> list[Any]:
    return [None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]


def _address_of(tensor: Tensor) -> int | None:
    """Return where the numbers of a tensor are, or None where they are not simply there: negated, or in a wrapper."""
    if tensor.is_neg():
        return None
    try:
        return tensor.data_ptr() or None
    except RuntimeError:  # torch has no type of its own for a tensor without storage
        return None
