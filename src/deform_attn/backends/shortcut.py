"""The short way to the CPU kernels, for small models that make calls by the thousand.

On a small input torch's dispatcher and our own checks cost many times what the kernel does. Both look at metadata only.
So a call whose metadata passed before, while torch has nothing to do between the call and its kernel, goes straight
there. Every other call takes the long way, the only one that knows errors, modes, transforms and other backends.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _functorch
from torch.autograd import forward_ad

from deform_attn.backends import derivatives, native_cpu
from deform_attn.backends.native_plan import Plan, Tensors
from deform_attn.checks import Inputs

Key = tuple[Any, ...]

_MOST = 1024  # keys remembered; each takes about a kilobyte
_plans: dict[Key, Plan] = {}

# What torch includes in each dispatch by itself, also under inference mode; modes and transforms in force add to it.
_ALWAYS = DispatchKeySet(DispatchKey.BackendSelect)
_NOTHING_IN_FORCE = (_ALWAYS | DispatchKeySet(DispatchKey.ADInplaceOrView)).raw_repr(), _ALWAYS.raw_repr()


def key(backend: str | None, tensors: Sequence[Any], spatial_shapes: Any, num_points: Any, *options: Any) -> Key | None:
    """Return all that checks and kernels look at in a call, or None where it must take the long way."""
    if torch.compiler.is_compiling() or not _torch_stands_aside() or backend not in (None, native_cpu.NAME) or native_cpu._reasons:
        return None
    # Types exactly, here and below, since to a dict 1, 1.0 and True are the same, but to the checks they are not.
    result = [_ints(spatial_shapes, pairs=True), num_points if num_points is None else _ints(num_points)]
    if result[0] == () or result[1] == ():
        return None
    for option in options:
        if type(option) not in (str, float, int):
            return None
    result += options
    for tensor in tensors:
        if tensor is None:
            result.append(None)
        elif _is_plain(tensor):
            result += (tensor.shape, tensor.stride(), tensor.dtype)
        else:
            return None
    return tuple(result)


def remember(key: Key, inputs: Inputs, tensors: Tensors) -> None:
    """Remember that a call with this key passed all checks, as `inputs`, and that the CPU kernels can run it."""
    plan = Plan(inputs)
    if plan.reads(tensors):
        if len(_plans) >= _MOST:
            _plans.clear()  # sizes that keep changing; those still in use come back with their next call
        _plans[key] = plan


def run(key: Key, tensors: Tensors) -> Tensor | None:
    """Return the output of a call whose key is remembered, or None of any other."""
    plan = _plans.get(key)
    if plan is None:
        return None
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors):
        if torch._C._dispatch_tls_is_dispatch_key_excluded(DispatchKey.AutogradCPU):
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
            and all(tensor is None or _is_plain(tensor) for tensor in (grad_output, *tensors))
        )
        grads = ctx.plan.backward(grad_output, tensors, wanted, short)
        return None, *grads


def _torch_stands_aside() -> bool:
    """Return whether no mode, transform, tracer, autocast, profiler or tangent is in force."""
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr() in _NOTHING_IN_FORCE
        and torch._C._dispatch_tls_is_dispatch_key_excluded(DispatchKey.AutocastCPU)
        and not torch._C._is_torch_function_mode_enabled()
        and not torch.autograd._profiler_enabled()
        and forward_ad._current_level < 0
    )


def _is_plain(tensor: Any) -> bool:
    """Return whether it is a tensor whose numbers lie in this machine's memory as they are."""
    return (
        (type(tensor) is Tensor or type(tensor) is torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and not _functorch.is_functorch_wrapped_tensor(tensor)
    )


def _ints(numbers: Any, pairs: bool = False) -> tuple[int, ...] | int:
    """Return plain ints, alone, in a sequence, or in a sequence of pairs, so that they can be looked up; else ()."""
    if type(numbers) is int and not pairs:
        return numbers
    if type(numbers) not in (list, tuple):
        return ()
    result = []
    for number in numbers:
        if pairs:
            if type(number) not in (list, tuple) or len(number) != 2:
                return ()
            H, W = number
            if type(H) is not int or type(W) is not int:
                return ()
            result += (H, W)
        elif type(number) is int:
            result.append(number)
        else:
            return ()
    return tuple(result)
