"""Prepared launches: a call that looks like an earlier one is neither judged nor laid out again."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deform_attn.backends.kept import Kept
from deform_attn.backends.triton.launch import MOST_IMAGES, Launch
from deform_attn.backends.triton.layout import Call, call_of
from deform_attn.messages import fail
from deform_attn.shape_checks import spatial_shapes_of
from deform_attn.torch_ops import schema

_launches: Kept[tuple[Any, ...], Launch] = Kept()


def launch_of(op: schema.Op, args: Sequence[Any], twin: bool = False) -> Launch | Call:
    """Return the launch of an op or its backward op, or of its twin; else its call, whose tensors must be copied first.

    A twin's call was judged before, any other is judged here.
    """
    key = _look_of("twin" if twin else op.name, args)
    launch = _launches.get(key)
    if launch is None:
        if twin:
            call = call_of(op, schema.arguments_of_twin(op, args))
        else:
            _judge(op, args)
            call = call_of(op, args)
        if not _is_one_launch(call, args):
            return call
        launch = _launches.keep(key, Launch(call))
    return launch


def launch_of_call(call: Call) -> Launch:
    """Return the launch of a judged call, or of a part of one."""
    key = _look_of("call", call)
    launch = _launches.get(key)
    return _launches.keep(key, Launch(call)) if launch is None else launch


def _judge(op: schema.Op, args: Sequence[Any]) -> None:
    """Judge where the tensors of a call are, and its sizes: graphs and callers by name hand them straight to the op."""
    op.judge(args)
    value, sizes = args[0], args[schema.SIZES]
    for i in op.tensors:
        if i != schema.SIZES and args[i] is not None and args[i].device != value.device:
            fail(op.names[i], f"a tensor on {value.device}, as value", str(args[i].device), "Move it there.")
    if isinstance(sizes, Tensor):
        if sizes.device.type == "cpu" and value.device.type != "cpu":
            pairs = spatial_shapes_of(sizes.tolist())
            _fit(pairs, value)
    else:
        _fit(tuple(zip(sizes[::2], sizes[1::2], strict=True)), value)


def _look_of(name: str, args: Sequence[Any]) -> tuple[Any, ...]:
    """Return all that a launch depends on, of the arguments of what has this name."""
    key: list[Any] = [name]
    for arg in args:
        if isinstance(arg, Tensor):
            key += arg.dtype, arg.device, arg.shape, arg.stride()
        elif type(arg) is list:
            key.append(tuple(arg))
        else:
            key.append(arg)
    return tuple(key)


def _is_one_launch(call: Call, args: Sequence[Any]) -> bool:
    """Return whether a call is a launch of the very tensors that were given: no copies, not several, not none."""
    given = [arg for arg in args if isinstance(arg, Tensor)]
    read = [*call.tensors, call.sizes if isinstance(call.sizes, Tensor) else None]
    if not all(tensor.numel() for tensor in given) or call.value.shape[0] > MOST_IMAGES:
        return False
    return {tensor.data_ptr() for tensor in given} == {tensor.data_ptr() for tensor in read if tensor is not None}


def _fit(pairs: Sequence[tuple[int, int]], value: Tensor) -> None:
    total = 0
    for H, W in pairs:
        total += H * W
        if H < 0 or W < 0:
            total = -1
            break
    if total != value.shape[1]:
        spatial_shapes_of(pairs, value.shape[1])
