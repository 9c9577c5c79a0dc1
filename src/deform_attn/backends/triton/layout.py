"""The form in which the kernels take a call: dense tensors, and sizes as numbers or in a table on the device."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deform_attn.torch_ops import schema

MOST_LEVELS_AS_NUMBERS = 8


class Call(NamedTuple):
    """A call of either op; of the classic one `references` and `mask` are None."""

    value: Tensor  # [N, S, M, D]
    sizes: tuple[int, ...] | Tensor  # H and W of each level, or [L, 2]
    points: Tensor  # [N, Q, M, T, 2], locations or offsets
    weights: Tensor  # [N, Q, M, T], weights or logits
    references: Tensor | None  # [N, Q, L or 1, 2 or 4]
    mask: Tensor | None  # [N, S]
    scale: float
    counts: tuple[int, ...]
    interpolation: str
    padding_mode: str

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that have addresses in a launch, but for sizes."""
        return self.value, self.points, self.weights, self.references, self.mask

    @property
    def is_double(self) -> bool:
        """Whether coordinates and sums are float64."""
        floats = self.value, self.points, self.weights, self.references
        return any(tensor is not None and tensor.dtype == torch.float64 for tensor in floats)


def call_of(op: schema.Op, args: Any) -> Call:
    """Return the call that an op was given, its tensors dense where the kernels need it."""
    if op in schema.SAMPLES:
        value, sizes, points, weights, counts, *options = args
        references, mask, scale = None, None, 0.0
    else:
        value, sizes, references, points, weights, mask, scale, counts, *options = args
        references = _dense(references, 1)
        mask = None if mask is None else mask.contiguous()
    sizes = sizes.to(value.device).contiguous() if isinstance(sizes, Tensor) else tuple(sizes)
    return Call(
        value.contiguous(),
        sizes,
        _dense(points, 3),
        _dense(weights, 2),
        references,
        mask,
        float(scale),
        tuple(counts),
        *options,
    )


def _dense(tensor: Tensor, axes: int) -> Tensor:
    """Return `tensor` with its last `axes` axes one after the other without gaps; a copy only where they are not."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[-axes:]), reversed(tensor.stride()[-axes:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor
