"""Calls that are remembered, for small models that make them by the thousand.

On a small input torch's dispatcher and our own checks cost many times what the kernel does. Both look at metadata only.
So a call whose metadata passed before, while torch has nothing to do between the call and its kernel, goes straight
there, by the plan of the backend that ran it. Every other call takes the long way, the only one that knows errors,
modes, transforms and other backends.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn.backends.base import Backend, Plan, Tensors
from deform_attn.backends.native.addresses import PLAIN_KEYS
from deform_attn.checks import Inputs
from deform_attn.torch_names import (
    REMEMBERED,
    DispatchKey,
    KeySet,
    any_requires_grad,
    dispatch_keys,
    included_keys,
    is_forward_mode_on,
    is_function_mode_on,
    is_key_excluded,
    is_profiler_on,
)
from deform_attn.torch_ops import autograd

Key = tuple[Any, ...]

_MOST = 1024  # keys remembered; each takes about a kilobyte
_plans: dict[Key, Plan] = {}

_OPTION_TYPES = str, float, int

# Looking a name up in torch takes as long as some of these calls do.
_Parameter, _is_grad_enabled = torch.nn.Parameter, torch.is_grad_enabled


def _nothing_in_force() -> tuple[int, ...]:
    """Return what torch includes in each dispatch by itself, the second under inference mode; modes add to it."""
    always = KeySet(DispatchKey.BackendSelect)
    return (always | KeySet(DispatchKey.ADInplaceOrView)).raw_repr(), always.raw_repr()


_AUTOCAST, _AUTOGRAD = (getattr(DispatchKey, f"{name}CPU", None) for name in ("Autocast", "Autograd"))
_NOTHING_IN_FORCE = () if REMEMBERED.missing else _nothing_in_force()


def key(backend: str | None, tensors: Sequence[Any], spatial_shapes: Any, num_points: Any, *options: Any) -> Key | None:
    """Return all that checks and kernels look at in a call, or None where it must take the long way."""
    if REMEMBERED.missing or torch.compiler.is_compiling() or not _torch_stands_aside():
        return None
    # Types exactly, here and below, since to a dict 1, 1.0 and True are the same, but to the checks they are not.
    result = [backend, _pairs(spatial_shapes), num_points if num_points is None else _counts(num_points), *options]
    for option in options:
        if type(option) not in _OPTION_TYPES:
            return None
    for tensor in tensors:
        result.append(None if tensor is None else _metadata(tensor))
    return None if () in result else tuple(result)


def remember(key: Key, backend: Backend, inputs: Inputs, tensors: Tensors) -> None:
    """Remember, where `backend` has plans, that a call with this key passed all checks, as `inputs`, and runs there."""
    plan = None if backend.plan is None else backend.plan(inputs, tensors)
    if plan is not None:
        if len(_plans) >= _MOST:
            _plans.clear()  # sizes that keep changing; those still in use come back with their next call
        _plans[key] = plan


def run(key: Key, tensors: Tensors) -> Tensor | None:
    """Return the output of a call whose key is remembered, or None of any other."""
    plan = _plans.get(key)
    if plan is None:
        return None
    if _is_grad_enabled() and any_requires_grad(*tensors):
        if is_key_excluded(_AUTOGRAD):
            return None  # inside another op's kernel, where autograd must not record
        return _Recorded.run(plan, *tensors)
    return plan.forward(tensors)


class _Recorded(autograd.Function):
    """A remembered call that autograd records; its backward pass goes through torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor | None) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return plan.forward(tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_output, tensors, (_, *wanted) = grad_outputs[0], ctx.saved_tensors, ctx.needs_input_grad
        if grad_output is None:
            return (None,) * len(ctx.needs_input_grad)
        return None, *ctx.plan.backward(grad_output, tensors, wanted)


def _torch_stands_aside() -> bool:
    """Return whether no mode, transform, tracer, autocast, profiler or tangent is in force."""
    return (
        included_keys().raw_repr() in _NOTHING_IN_FORCE
        and is_key_excluded(_AUTOCAST)
        and not is_function_mode_on()
        and not is_profiler_on()
        and not is_forward_mode_on()
    )


def _metadata(tensor: Any) -> tuple[Any, ...]:
    """Return what a tensor is but for its numbers, if these lie in this machine's memory as they are; else ()."""
    if (type(tensor) is Tensor or type(tensor) is _Parameter) and dispatch_keys(tensor).raw_repr() in PLAIN_KEYS:
        return tensor.shape, tensor.stride(), tensor.dtype
    return ()


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
