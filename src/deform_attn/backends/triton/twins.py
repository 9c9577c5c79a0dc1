"""The ops' twins on tensors of a GPU: calls that were judged before go to a launch that was prepared before."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from deform_attn.backends.triton import ops, toolchain
from deform_attn.backends.triton.launch import MOST_IMAGES, Launch, launch_of
from deform_attn.backends.triton.layout import call_of
from deform_attn.torch_ops import schema

_MOST = 1024  # kinds of calls kept
_launches: dict[tuple[Any, ...], Launch | None] = {}


def twin_of(op: schema.Op) -> Callable[..., Tensor]:
    """Return the kernel of an op's twin (torch_ops/schema.py)."""
    forward, fused = ops.forward_of(op), op in schema.ATTENDS

    def judged(*args: Any) -> Tensor:
        if fused:
            value, references, points, weights, mask, scale, call = args
        else:
            (value, points, weights, call), references, mask, scale = args, None, None, None
        tensors = value, points, weights, references, mask
        key: tuple[Any, ...] = value.device, scale, *call
        for tensor in tensors:
            key += (None,) if tensor is None else (tensor.dtype, tensor.shape, tensor.stride())
        if key in _launches:
            launch = _launches[key]
        else:
            launch = _prepared(op, args)
            if len(_launches) >= _MOST:
                _launches.clear()  # sizes that keep changing; those still in use come back with their next call
            _launches[key] = launch
        if launch is not None and value.device not in ops.failures:
            try:
                return launch.forward(tensors)
            except toolchain.KernelUnavailable:
                pass  # the op says so, and falls back
        return forward(*schema.arguments_of_twin(op, args))

    return judged


def _prepared(op: schema.Op, args: Any) -> Launch | None:
    """Return the launch of a twin's call, or None where it needs more than a launch, such as copies."""
    call = call_of(op, schema.arguments_of_twin(op, args))
    given = [tensor for tensor in args[: len(op.tensors)] if tensor is not None]
    read = [tensor for tensor in call.tensors if tensor is not None]
    if not all(tensor.numel() for tensor in given) or call.value.shape[0] > MOST_IMAGES:
        return None
    as_it_lies = {tensor.data_ptr() for tensor in given} == {tensor.data_ptr() for tensor in read}
    return launch_of(call) if as_it_lies else None
