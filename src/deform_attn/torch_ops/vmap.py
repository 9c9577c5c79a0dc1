"""vmap over the two ops: the mapped axis is folded into the batch, or into the queries where all share one value."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn.torch_ops.schema import LIBRARY, OPS, SIZES, Op

Result = tuple[Any, Any]  # outputs, and at which axis each is mapped
Rule = Callable[..., Result]


def _forward_rule(op: Op) -> Rule:
    def rule(info: Any, axes: Sequence[int | None], *args: Any) -> Result:
        shared = all(axes[i] is None for i in op.without_queries)
        fold = _Fold(info.batch_size, into_queries=shared)
        output = op.forward(*fold.arguments(args, axes, SIZES, op.without_queries))
        return fold.unfold(output), fold.axis

    return rule


def _backward_rule(op: Op) -> Rule:
    without_queries = [1 + i for i in op.without_queries]  # the gradient of the output comes before them

    def rule(info: Any, axes: Sequence[int | None], *args: Any) -> Result:
        # Each of the mapped calls has a gradient of value of its own, however many share the value.
        want_value = args[-1][0]
        shared = all(axes[i] is None for i in without_queries) and not want_value
        fold = _Fold(info.batch_size, into_queries=shared)
        grads = op.backward(*fold.arguments(args, axes, 1 + SIZES, without_queries))
        return fold.unfold_wanted(grads, args[-1])

    return rule


class _Fold:
    """The folding of a mapped axis of some size into the batch N, axis 0 of every tensor, or the queries Q, axis 1."""

    def __init__(self, size: int, into_queries: bool) -> None:
        self.size = size
        self.axis = int(into_queries)

    def arguments(
        self, args: Sequence[Any], axes: Sequence[int | None], sizes: int, without_queries: Sequence[int]
    ) -> list[Any]:
        """Return the arguments of the folded call; those at the places `without_queries` have no query axis."""
        if isinstance(args[sizes], Tensor) and axes[sizes] is not None:
            raise ValueError("spatial_shapes: torch.vmap cannot map over sizes; map over the rest (in_dims None)")
        whole = {sizes, *(without_queries if self.axis else ())}
        return [
            self._fold(arg, axis) if isinstance(arg, Tensor) and i not in whole else arg
            for i, (arg, axis) in enumerate(zip(args, axes, strict=True))
        ]

    def _fold(self, tensor: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            tensor = tensor.unsqueeze(self.axis)
            shape = list(tensor.shape)
            shape[self.axis] = self.size
            tensor = tensor.expand(shape)
        else:
            tensor = tensor.movedim(axis, self.axis)
        return tensor.flatten(self.axis, self.axis + 1)

    def unfold(self, tensor: Tensor) -> Tensor:
        """Return an output with the mapped axis of its own, at `self.axis`."""
        return tensor.unflatten(self.axis, (self.size, tensor.shape[self.axis] // self.size))

    def unfold_wanted(self, grads: Sequence[Tensor], wanted: Sequence[bool]) -> Result:
        """Return the gradients so, and their mapped axes; those that are not wanted are empty and have none."""
        unfolded = tuple(self.unfold(grad) if want else grad for grad, want in zip(grads, wanted, strict=True))
        return unfolded, tuple(self.axis if want else None for want in wanted)


for _op in OPS:
    torch.library.register_vmap(f"deform_attn::{_op.name}", _forward_rule(_op), lib=LIBRARY)
    torch.library.register_vmap(f"deform_attn::{_op.backward_name}", _backward_rule(_op), lib=LIBRARY)
