"""What a program begins with: where its tensors are, and in a backward pass its rows and their output's gradient."""

import triton
import triton.language as tl

from deform_attn.backends.triton.kernels.points import softmax_terms
from deform_attn.backends.triton.kernels.reads import channels_of
from deform_attn.backends.triton.kernels.rows import offset_of, rows_of


@triton.jit
def places_of(
    points, weights, references, m, n, q, points_n, points_q, weights_n, weights_q, references_n, references_q,
    T: tl.constexpr, FUSED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return where points, weights and references of head m of image n begin, each with where in it the queries are."""
    points += n * points_n + m * (2 * T)
    weights += n * weights_n + m * T
    if FUSED:
        references += n * references_n
        references_at = offset_of(q, references_q, WIDE)
    else:
        references = points  # None cannot be returned
        references_at = q
    return points, offset_of(q, points_q, WIDE), weights, offset_of(q, weights_q, WIDE), references, references_at


@triton.jit
def begin(
    zero, grad_output, value, points, weights, references, mask, table, Q, S, points_n, points_q, weights_n, weights_q,
    references_n, references_q, sizes, M: tl.constexpr, D: tl.constexpr, L: tl.constexpr, FUSED: tl.constexpr,
    MASKED: tl.constexpr, BY_TABLE: tl.constexpr, STRIPS: tl.constexpr, WIDE: tl.constexpr, PAIRS: tl.constexpr,
    T: tl.constexpr, TP: tl.constexpr, B: tl.constexpr, BD: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Return all that follows from which program this is; `zero` is 0.

    A program that begins once more passes a 0 of which the compiler does not know that it is one. So nothing is kept
    in registers until then.
    """
    m = tl.program_id(1) + zero
    n = (tl.program_id(2) + zero).to(tl.int64)
    q, there = rows_of(tl.program_id(0) + zero, Q, sizes, table, L, B, BY_TABLE, STRIPS)
    d = tl.arange(0, BD)[None, :]
    pull = tl.load(
        grad_output + (n * Q * M + m) * D + offset_of(q, M * D, WIDE)[:, None] + d,
        mask=there[:, None] & (d < D),
        other=0.0,
    ).to(F)
    value, channels = channels_of(value + n * S * (M * D) + m * D, D, BD, PAIRS)
    mask = mask + n * S if MASKED else value
    points, points_at, weights, weights_at, references, references_at = places_of(
        points, weights, references, m, n, q, points_n, points_q, weights_n, weights_q, references_n, references_q,
        T, FUSED, WIDE,
    )  # fmt: skip
    row = (n * Q * M + m).to(tl.int64) + q.to(tl.int64) * M
    most = tl.zeros([B], F)
    rescale = tl.zeros([B], F)
    if FUSED:
        most, rescale = softmax_terms(weights, weights_at, there, T, TP, F)
    return (
        m, n, there, row, pull, value, channels, points, points_at, weights, weights_at, references, references_at,
        mask, most, rescale,
    )  # fmt: skip
