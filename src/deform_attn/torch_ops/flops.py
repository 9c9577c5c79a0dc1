"""What torch.utils.flop_counter counts for the two ops: the multiplications and additions of reading pixels.

A bilinear read costs, for each point and channel, a multiplication and an addition at each of four corners, a nearest
one at one pixel. Backward, the gradient of value costs the same, and so do those of points and weights together.
"""

from collections.abc import Sequence
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from deform_attn.torch_ops.schema import ATTEND, ATTEND_BACKWARD, SAMPLE, SAMPLE_BACKWARD


@register_flop_formula([SAMPLE.overloadpacket])
def _sample(value: Sequence[int], _shapes: Any, _locations: Any, weights: Any, *options: Any, **_: Any) -> int:
    return _reads(value, weights, options)


@register_flop_formula([ATTEND.overloadpacket])
def _attend(
    value: Sequence[int], _shapes: Any, _references: Any, _offsets: Any, logits: Any, *options: Any, **_: Any
) -> int:
    return _reads(value, logits, options[2:])


@register_flop_formula([SAMPLE_BACKWARD.overloadpacket])
def _sample_backward(_grad: Any, *args: Any, **_: Any) -> int:
    *call, wanted = args
    return _sample(*call) * _passes(wanted)


@register_flop_formula([ATTEND_BACKWARD.overloadpacket])
def _attend_backward(_grad: Any, *args: Any, **_: Any) -> int:
    *call, wanted = args
    return _attend(*call) * _passes(wanted)


def _reads(value: Sequence[int], weights: Sequence[int], options: Sequence[Any]) -> int:
    N, Q, M, T = weights
    _num_points, interpolation, _padding_mode = options
    return 2 * (1 if interpolation == "nearest" else 4) * N * Q * M * T * value[3]


def _passes(wanted: Sequence[bool]) -> int:
    return int(wanted[0]) + int(any(wanted[1:]))
