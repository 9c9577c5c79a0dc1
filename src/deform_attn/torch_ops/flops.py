"""What torch.utils.flop_counter counts for the two ops: the multiplications and additions of reading pixels.

A bilinear read costs, for each point and channel, a multiplication and an addition at each of four corners, a nearest
one at one pixel. Backward, the gradient of value costs the same, and so do those of points and weights together.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from deform_attn.torch_ops.schema import ATTEND, SAMPLE, Op

Formula = Callable[..., int]


def _forward_formula(op: Op) -> Formula:
    def formula(*args: Any, **_: Any) -> int:  # of tensors the shapes
        _, _, _, D = args[0]
        N, Q, M, T = args[op.gradients[-1]]  # attention weights, or their logits
        corners = 1 if op.option("interpolation", args) == "nearest" else 4
        return 2 * corners * N * Q * M * T * D

    return formula


def _backward_formula(op: Op) -> Formula:
    forward = _forward_formula(op)

    def formula(_grad_output: Any, *args: Any, **_: Any) -> int:
        *call, wanted = args
        return forward(*call) * _passes(wanted)

    return formula


def _passes(wanted: Sequence[bool]) -> int:
    return int(wanted[0]) + int(any(wanted[1:]))


for _op in (SAMPLE, ATTEND):  # torch counts an op's overloads as one
    register_flop_formula([_op.forward.overloadpacket])(_forward_formula(_op))
    register_flop_formula([_op.backward.overloadpacket])(_backward_formula(_op))
