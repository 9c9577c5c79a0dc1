"""vmap over the two ops: the mapped axis is folded into the batch, or into the queries where all share one value."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn.torch_ops.schema import ATTEND, ATTEND_BACKWARD, LIBRARY, NAMES, SAMPLE, SAMPLE_BACKWARD

Result = tuple[Any, Any]  # outputs, and at which axis each is mapped


def _sample(info: Any, axes: Sequence[int | None], *args: Any) -> Result:
    fold = _Fold(info.batch_size, into_queries=axes[0] is None)
    output = SAMPLE(*fold.arguments(args, axes))
    return fold.unfold(output), fold.axis


def _attend(info: Any, axes: Sequence[int | None], *args: Any) -> Result:
    fold = _Fold(info.batch_size, into_queries=axes[0] is None and axes[5] is None)
    output = ATTEND(*fold.arguments(args, axes, over_pixels=(0, 5)))
    return fold.unfold(output), fold.axis


def _sample_backward(info: Any, axes: Sequence[int | None], *args: Any) -> Result:
    # Each of the mapped calls has a gradient of value of its own, however many share the value.
    fold = _Fold(info.batch_size, into_queries=axes[1] is None and not args[-1][0])
    grads = SAMPLE_BACKWARD(*fold.arguments(args, axes, over_pixels=(1,)))
    return fold.unfold_wanted(grads, args[-1])


def _attend_backward(info: Any, axes: Sequence[int | None], *args: Any) -> Result:
    fold = _Fold(info.batch_size, into_queries=axes[1] is None and axes[6] is None and not args[-1][0])
    grads = ATTEND_BACKWARD(*fold.arguments(args, axes, over_pixels=(1, 6)))
    return fold.unfold_wanted(grads, args[-1])


class _Fold:
    """The folding of a mapped axis of some size into the batch N, axis 0 of every tensor, or the queries Q, axis 1."""

    def __init__(self, size: int, into_queries: bool) -> None:
        self.size = size
        self.axis = int(into_queries)

    def arguments(
        self, args: Sequence[Any], axes: Sequence[int | None], over_pixels: Sequence[int] = (0,)
    ) -> list[Any]:
        """Return the arguments of the folded call; those at the places `over_pixels` have no query axis."""
        return [
            self._fold(arg, axis) if isinstance(arg, Tensor) and not (self.axis and i in over_pixels) else arg
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


for _name, _rule, _backward_rule in zip(NAMES, (_sample, _attend), (_sample_backward, _attend_backward), strict=True):
    torch.library.register_vmap(f"deform_attn::{_name}", _rule, lib=LIBRARY)
    torch.library.register_vmap(f"deform_attn::{_name}_backward", _backward_rule, lib=LIBRARY)
