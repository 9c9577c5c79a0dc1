"""The form in which the kernels take a call: dense tensors, and sizes as numbers or in a table on the device."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from deform_attn.torch_ops import schema

MOST_LEVELS_AS_NUMBERS = 8

Sizes = tuple[int, ...] | Tensor  # H and W of each level, or [L, 2]


class Call(NamedTuple):
    """A call of either op; of the classic one `references` and `mask` are None."""

    value: Tensor  # [N, S, M, D]
    sizes: Sizes
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


def strides_of(call: Call) -> tuple[int, ...]:
    """Return how far apart images and queries are, of points, weights and references, and levels of the last."""
    reference: tuple[int, ...] = (0, 0, 0)
    if call.references is not None:
        n, q, level, _ = call.references.stride()
        reference = n, q, 0 if call.references.shape[2] == 1 else level
    return *call.points.stride()[:2], *call.weights.stride()[:2], *reference


def is_by_table(sizes: Sizes) -> bool:
    """Return whether the kernels read sizes in a table on the device."""
    return isinstance(sizes, Tensor) or len(sizes) > 2 * MOST_LEVELS_AS_NUMBERS


def flat_sizes(sizes: Sizes) -> tuple[int, ...]:
    """Return H and W of each of eight levels, 0 where there is none or the table has them."""
    given: tuple[int, ...] = () if isinstance(sizes, Tensor) or is_by_table(sizes) else sizes
    return given + (0,) * (2 * MOST_LEVELS_AS_NUMBERS - len(given))


def table_of(sizes: Sizes, device: torch.device) -> Tensor | None:
    """Return the table of sizes `[L, 2]`, or None where they are numbers of the launch."""
    if isinstance(sizes, Tensor):
        return sizes
    if not is_by_table(sizes):
        return None
    # Filled, since a copy of the host's numbers would wait, and may not be part of a CUDA graph.
    table = torch.empty(len(sizes), dtype=torch.int64, device=device)
    for place, size in zip(table.unbind(), sizes, strict=True):
        place.fill_(size)
    return table


def _dense(tensor: Tensor, axes: int) -> Tensor:
    """Return `tensor` with its last `axes` axes one after the other without gaps; a copy only where they are not."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[-axes:]), reversed(tensor.stride()[-axes:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor
