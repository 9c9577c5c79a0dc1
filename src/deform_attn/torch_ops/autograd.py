"""Derivatives of the two ops, of any order, backward and forward, as torch's autograd asks for them.

The first gradients are ops themselves, `..._backward`, with compiled kernels. What lies beyond is made of tangents.py
for the classic op; the op from raw offsets and logits is first taken apart into that (decomposition.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deform_attn import torch_names
from deform_attn.torch_ops import decomposition, meant, tangents
from deform_attn.torch_ops.schema import ATTENDS, OPS, Op, register

_Grads = tuple[Tensor | None, ...]


class Function(torch_names.SingleLevelFunction):  # type: ignore[misc]
    """A derivative on one level: of autograd alone, or of one of the transforms of torch.func.

    Each of these, nested as they may be, dispatches the ops once and so comes here by itself. A plain
    `autograd.Function` is for all levels at once and refuses to run below the dispatcher.
    """

    @classmethod
    def run(cls, *args: Any) -> Any:
        """Apply it, on this level."""
        allowed = torch_names.get_single_level_allowed()
        torch_names.set_single_level_allowed(True)
        try:
            return cls.apply(*args)
        finally:
            torch_names.set_single_level_allowed(allowed)


class _Call(Function):
    """A call of an op; forward mode comes here with a classic one only."""

    @staticmethod
    def forward(ctx: Any, op: Op, *args: Any) -> Tensor:
        ctx.op = op
        _save(ctx, args, op.tensors)
        with _next_level():
            output: Tensor = op.forward(*args)
            return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> _Grads:
        wanted = [ctx.needs_input_grad[1 + i] for i in ctx.op.gradients]
        if grad_outputs[0] is None:
            return (None,) * len(ctx.needs_input_grad)
        with meant.meaning(ctx.meant):
            grads = ctx.op.backward(grad_outputs[0], *_saved(ctx), wanted)
        return _placed(ctx, ctx.op.gradients, grads, wanted)

    @staticmethod
    def jvp(ctx: Any, _op: None, *moves: Tensor | None) -> Tensor:
        with _saved_to_move(ctx) as inputs:
            return tangents.of_output(inputs, [moves[i] for i in ctx.op.gradients])


class _SampleBackward(Function):
    @staticmethod
    def forward(ctx: Any, op: Op, *args: Any) -> tuple[Tensor, ...]:
        ctx.op = op
        ctx.places = [0, *(1 + i for i in op.gradients)]  # the gradient of the output comes first
        _save(ctx, args, [0, *(1 + i for i in op.tensors)])
        with _next_level():
            grads: tuple[Tensor, ...] = op.backward(*args)
        ctx.mark_non_differentiable(*[grad for grad, want in zip(grads, args[-1], strict=True) if not want])
        return grads

    @staticmethod
    def backward(ctx: Any, *moves: Tensor | None) -> _Grads:
        grad_output, *inputs, _ = _saved(ctx)
        needed = [ctx.needs_input_grad[1 + i] for i in ctx.places]
        grads: list[Tensor | None] = [None] * len(ctx.places)
        with meant.meaning(ctx.meant):
            if needed[0]:
                grads[0] = tangents.of_output(inputs, moves)
            if any(needed[1:]):
                grads[1:] = tangents.of_gradients(grad_output, inputs, moves)
        return _placed(ctx, ctx.places, grads, needed)

    @staticmethod
    def jvp(ctx: Any, _op: None, *moves: Tensor | None) -> _Grads:
        with _saved_to_move(ctx) as (grad_output, *inputs, wanted):
            move_grad_output, *move_inputs = (moves[i] for i in ctx.places)
            move_grads = tangents.of_gradients(grad_output, inputs, move_inputs)
            if move_grad_output is not None:
                more = ctx.op.backward(move_grad_output, *inputs, [True] * len(move_grads))
                move_grads = [move + grad for move, grad in zip(move_grads, more, strict=True)]
        return tuple(move if want else None for move, want in zip(move_grads, wanted, strict=True))


def _save(ctx: Any, args: Sequence[Any], tensors: Sequence[int]) -> None:
    """Keep the arguments of a call; those at the places `tensors` as autograd must know of them."""
    ctx.tensors = tensors
    ctx.meant = meant.current()
    ctx.args = [None if i in tensors else arg for i, arg in enumerate(args)]
    saved = [args[i] for i in tensors]
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)
    ctx.set_materialize_grads(False)


def _saved(ctx: Any, tensors: Sequence[Any] | None = None) -> list[Any]:
    args = list(ctx.args)
    for i, tensor in zip(ctx.tensors, ctx.saved_tensors if tensors is None else tensors, strict=True):
        args[i] = tensor
    return args


@contextmanager
def _saved_to_move(ctx: Any) -> Iterator[list[Any]]:
    """Yield the arguments without their own tangents; those of levels further out, which torch has off, are on."""
    with torch_names.forward_mode_enabled(True):
        yield _saved(ctx, [forward_ad.unpack_dual(tensor).primal for tensor in ctx.saved_for_forward])


def _placed(ctx: Any, places: Sequence[int], grads: Sequence[Tensor | None], wanted: Sequence[bool]) -> _Grads:
    """Return a gradient for the op and each argument of the call, None where none is wanted."""
    placed: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for i, grad, want in zip(places, grads, wanted, strict=True):
        placed[1 + i] = grad if want else None
    return tuple(placed)


@contextmanager
def _next_level() -> Iterator[None]:
    """Hand what is called inside to the kernel, or to the next transform of torch.func."""
    with ExitStack() as stack:
        if torch_names.are_transforms_active():
            # Inside of a function's forward torch has them off, but the next level wants its derivatives, too.
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch_names.forward_mode_enabled(True))
        stack.enter_context(torch_names.BelowAutograd())
        yield


def _is_recorded(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _is_moving(tensors: Sequence[Tensor]) -> bool:
    """Return whether a tensor has a tangent on this level."""
    if not torch_names.is_forward_mode_on():
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _forward_kernel(op: Op) -> Callable[..., Tensor]:
    def kernel(*args: Any) -> Tensor:
        tensors = [args[i] for i in op.gradients]
        moving = _is_moving(tensors)
        if moving and op in ATTENDS:
            return decomposition.attend(*args)
        if moving or _is_recorded(tensors):
            return _Call.run(op, *args)
        with torch_names.BelowAutograd():
            return op.forward(*args)

    return kernel


def _backward_kernel(op: Op) -> Callable[..., tuple[Tensor, ...]]:
    def kernel(grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
        tensors = [grad_output, *(args[i] for i in op.gradients)]
        if _is_recorded(tensors) or _is_moving(tensors):
            if op in ATTENDS:
                return decomposition.attend_backward(grad_output, *args)
            return _SampleBackward.run(op, grad_output, *args)
        with torch_names.BelowAutograd():
            return op.backward(grad_output, *args)

    return kernel


if not torch_names.OPS.missing:
    for _op in OPS:
        register(_op, _forward_kernel(_op), _backward_kernel(_op), "Autograd")
