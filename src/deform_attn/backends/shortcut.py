"""The short way to the CPU kernels, for small models that make calls by the thousand.

On a small input torch's dispatcher and our own checks cost many times what the kernel does. Both look at metadata only.
So a call whose metadata passed before, while torch has nothing to do between the call and its kernel, goes straight
there. Every other call takes the long way, the only one that knows errors, modes, transforms and other backends.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.autograd import forward_ad

from deform_attn.backends import addresses, derivatives, native_cpu
from deform_attn.backends.native_plan import Plan, Tensors
from deform_attn.checks import Inputs

Key = tuple[Any, ...]

_MOST = 1024  # keys remembered; each takes about a kilobyte
_plans: dict[Key, Plan] = {}

_BACKENDS = None, native_cpu.NAME
_OPTION_TYPES = str, float, int

# Looking a name up in torch takes as long as some of these calls do.
_Parameter, _keys, _PLAIN_KEYS = torch.nn.Parameter, torch._C._dispatch_keys, addresses.PLAIN_KEYS
_included, _is_excluded = torch._C._dispatch_tls_local_include_set, torch._C._dispatch_tls_is_dispatch_key_excluded
_is_function_mode_on, _is_profiler_on = torch._C._is_torch_function_mode_enabled, torch._C._autograd._profiler_enabled
_is_grad_enabled, _any_requires_grad = torch.is_grad_enabled, torch._C._any_requires_grad
_AUTOCAST, _AUTOGRAD = DispatchKey.AutocastCPU, DispatchKey.AutogradCPU

# What torch includes in each dispatch by itself, also under inference mode; modes and transforms in force add to it.
_ALWAYS = DispatchKeySet(DispatchKey.BackendSelect)
_NOTHING_IN_FORCE = (_ALWAYS | DispatchKeySet(DispatchKey.ADInplaceOrView)).raw_repr(), _ALWAYS.raw_repr()


def key(backend: str | None, tensors: Sequence[Any], spatial_shapes: Any, num_points: Any, *options: Any) -> Key | None:
    """Return all that checks and kernels look at in a call, or None where it must take the long way."""
    if torch.compiler.is_compiling() or not _torch_stands_aside() or backend not in _BACKENDS or native_cpu._reasons:
        return None
    # Types exactly, here and below, since to a dict 1, 1.0 and True are the same, but to the checks they are not.
    result = [_pairs(spatial_shapes), num_points if num_points is None else _counts(num_points), *options]
    for option in options:
        if type(option) not in _OPTION_TYPES:
            return None
    for tensor in tensors:
        result.append(None if tensor is None else _metadata(tensor))
    return None if () in result else tuple(result)


def remember(key: Key, inputs: Inputs, tensors: Tensors) -> None:
    """Remember that a call with this key passed all checks, as `inputs`, and that the CPU kernels can run it."""
    plan = Plan(inputs, tensors)
    if plan.reads(tensors):
        if len(_plans) >= _MOST:
            _plans.clear()  # sizes that keep changing; those still in use come back with their next call
        _plans[key] = plan


def run(key: Key, tensors: Tensors) -> Tensor | None:
    """Return the output of a call whose key is remembered, or None of any other."""
    plan = _plans.get(key)
    if plan is None:
        return None
    if _is_grad_enabled() and _any_requires_grad(*tensors):
        if _is_excluded(_AUTOGRAD):
            return None  # inside another op's kernel, where autograd must not record
        return _Recorded.run(plan, *tensors)
    return plan.forward(tensors)


class _Recorded(derivatives.Function):
    """A call on the short way that autograd records. A backward pass of its own may go the long way."""

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
        short = (
            not torch.is_grad_enabled()
            and _torch_stands_aside()
            and all(tensor is None or _metadata(tensor) for tensor in (grad_output, *tensors))
        )
        grads = ctx.plan.backward(grad_output, tensors, wanted, short)
        return None, *grads


def _torch_stands_aside() -> bool:
    """Return whether no mode, transform, tracer, autocast, profiler or tangent is in force."""
    return (
        _included().raw_repr() in _NOTHING_IN_FORCE
        and _is_excluded(_AUTOCAST)
        and not _is_function_mode_on()
        and not _is_profiler_on()
        and forward_ad._current_level < 0
    )


def _metadata(tensor: Any) -> tuple[Any, ...]:
    """Return what a tensor is but for its numbers, if these lie in this machine's memory as they are; else ()."""
    if (type(tensor) is Tensor or type(tensor) is _Parameter) and _keys(tensor).raw_repr() in _PLAIN_KEYS:
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
