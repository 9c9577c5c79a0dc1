"""Rows done with care: the gradients of points of rows in which something is not finite, a point at a time.

backward.py leaves out what only NaN and infinity ask for, and does such rows again here, as reference.py has them.
"""

import triton
import triton.language as tl

from deform_attn.backends.triton.kernels.geometry import axis, corners_of, four_shares, unmasked
from deform_attn.backends.triton.kernels.levels import first_level, level_size, next_level
from deform_attn.backends.triton.kernels.points import locations_of, references_of, weights_of
from deform_attn.backends.triton.kernels.program import begin
from deform_attn.backends.triton.kernels.reads import read_pixels
from deform_attn.backends.triton.kernels.rows import offset_of


@triton.jit
def dot_with(
    pull, value, on_map, mask, pixel, share, channels, STEP: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr
):
    """Return <pull, pixel>, `[B, 1]`, 0 off the map; what is not finite under a share of 0 counts as 0."""
    seen = unmasked(on_map, mask, pixel) if MASKED else on_map
    read = read_pixels(value + offset_of(pixel, STEP, WIDE), seen & channels, pull.shape[0], pull.shape[1], pull.dtype)
    read = tl.where((share == 0) & (read - read != 0), 0.0, read)
    return tl.where(on_map, tl.sum(read * pull, 1)[:, None], 0.0)


@triton.jit
def point_gradients(
    pull, value, mask, channels, x, y, a, ok, H, W, first, S,
    STEP: tl.constexpr, NEAREST: tl.constexpr, BORDER: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return the gradients of one point's weight and of its coordinates in pixels, `[B, 1]`."""
    c, u, moves_x = axis(x, W, BORDER)
    r, v, moves_y = axis(y, H, BORDER)
    pixel, on00, on01, on10, on11 = corners_of(c, r, ok, H, W, first, S)
    s00, s01, s10, s11 = four_shares(u, v)
    by_x = x * 0
    by_y = x * 0
    if NEAREST:
        d00 = dot_with(pull, value, on00, mask, pixel, s00 * 0 + 1, channels, STEP, WIDE, MASKED)
        by_weight = d00
        by_x = tl.zeros_like(x)
        by_y = tl.zeros_like(x)
    else:
        d00 = dot_with(pull, value, on00, mask, pixel, s00, channels, STEP, WIDE, MASKED)
        d01 = dot_with(pull, value, on01, mask, pixel + 1, s01, channels, STEP, WIDE, MASKED)
        d10 = dot_with(pull, value, on10, mask, pixel + W, s10, channels, STEP, WIDE, MASKED)
        d11 = dot_with(pull, value, on11, mask, pixel + W + 1, s11, channels, STEP, WIDE, MASKED)
        by_weight = s00 * d00 + s01 * d01 + s10 * d10 + s11 * d11
        any_on = on00 | on01 | on10 | on11
        by_x = tl.where(any_on & moves_x, (1 - v) * (a * d01 - a * d00) + v * (a * d11 - a * d10), 0.0)
        by_y = tl.where(any_on & moves_y, (1 - u) * (a * d10 - a * d00) + u * (a * d11 - a * d01), 0.0)
    # What is read off the map is 0, and 0 times a gradient that is not finite is NaN.
    by_weight += tl.sum(pull * 0.0, 1)[:, None]
    by_weight = tl.where((x != x) | (y != y), float("nan"), by_weight)
    return tl.where(ok & (H > 0) & (W > 0), by_weight, 0.0), by_x, by_y


@triton.jit
def careful_program(
    zero, bad, grad_output, value, points, weights, references, mask, table, grad_points, grad_weights, grad_references,
    Q, S, points_n, points_q, weights_n, weights_q, references_n, references_q, references_l, scale, sizes,
    M: tl.constexpr, D: tl.constexpr, COUNTS: tl.constexpr, FUSED: tl.constexpr, NEAREST: tl.constexpr,
    BORDER: tl.constexpr, MASKED: tl.constexpr, BY_TABLE: tl.constexpr, STRIPS: tl.constexpr, WIDE: tl.constexpr,
    PAIRS: tl.constexpr, WANT_POINTS: tl.constexpr, WANT_WEIGHTS: tl.constexpr, REFERENCE_LEVELS: tl.constexpr,
    T: tl.constexpr, TP: tl.constexpr, B: tl.constexpr, BD: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Begin a program once more, and do its rows that are `bad [B]` with care."""
    (
        _m, _n, there, row, pull, value, channels, points, points_at, weights, weights_at, references, references_at,
        mask, most, rescale,
    ) = begin(
        zero, grad_output, value, points, weights, references, mask, table, Q, S, points_n, points_q, weights_n,
        weights_q, references_n, references_q, sizes, M, D, len(COUNTS), FUSED, MASKED, BY_TABLE, STRIPS, WIDE, PAIRS,
        T, TP, B, BD, F,
    )  # fmt: skip
    careful_rows(
        bad & there, row, pull, value, channels, points, points_at, weights, weights_at, references, references_at,
        references_l, mask, table, sizes, most, rescale, scale, grad_points, grad_weights, grad_references, S, COUNTS,
        FUSED, NEAREST, BORDER, MASKED, BY_TABLE, WIDE, WANT_POINTS, WANT_WEIGHTS, REFERENCE_LEVELS,
        M * D // 2 if PAIRS else M * D, T, F,
    )  # fmt: skip


@triton.jit
def careful_rows(
    rows, row, pull, value, channels, points, points_at, weights, weights_at, references, references_at, references_l,
    mask, table, sizes, most, rescale, scale, grad_points, grad_weights, grad_references, S,
    COUNTS: tl.constexpr, FUSED: tl.constexpr, NEAREST: tl.constexpr, BORDER: tl.constexpr, MASKED: tl.constexpr,
    BY_TABLE: tl.constexpr, WIDE: tl.constexpr, WANT_POINTS: tl.constexpr, WANT_WEIGHTS: tl.constexpr,
    REFERENCE_LEVELS: tl.constexpr, STEP: tl.constexpr, T: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Write the gradients of points, weights and references of the rows that `rows [B]` marks.

    In loops that are not unrolled, so that this takes little code: almost no program comes here.
    """
    ok = rows[:, None]
    mean = tl.zeros([rows.shape[0], 1], F)
    sum_x = tl.zeros([rows.shape[0], 1], F)
    sum_y = tl.zeros([rows.shape[0], 1], F)
    sum_w = tl.zeros([rows.shape[0], 1], F)
    sum_h = tl.zeros([rows.shape[0], 1], F)
    # For a softmax all gradients of weights are summed up in a first turn over the points.
    for i in range(0 if FUSED and WANT_WEIGHTS else T, 2 * T):
        t = i % T
        final = i >= T
        level, end, count, first, H, W = level_of_point(t, sizes, table, COUNTS, BY_TABLE)
        rx = most
        ry = most
        rw = most
        rh = most
        if FUSED:
            rx, ry, rw, rh = references_of(references, references_at + level * references_l, rows, FUSED, F)
        x, y, raw_x, raw_y = locations_of(
            points, points_at[:, None] + 2 * t, ok, rx, ry, rw, rh, H, W, scale, count, FUSED, NEAREST, F
        )
        a = weights_of(weights, weights_at[:, None] + t, ok, most, rescale, FUSED, F)
        by_weight, by_x, by_y = point_gradients(
            pull, value, mask, channels, x, y, a, ok, H, W, first, S, STEP, NEAREST, BORDER, MASKED, WIDE
        )
        at = row[:, None] * T + t
        if FUSED:
            mean += tl.where(final, 0.0, a * by_weight)
            by_weight = a * (by_weight - mean)
        if WANT_WEIGHTS:
            tl.store(grad_weights + at, by_weight.to(grad_weights.dtype.element_ty), mask=ok & final)
        in_map_x = by_x * W.to(F)
        in_map_y = by_y * H.to(F)
        if FUSED == 4:
            # 0 stays 0: a box or offset that is not finite has put the point where it gets no gradient.
            step = scale / tl.maximum(count, 1).to(F)
            by_x = tl.where(in_map_x == 0, 0.0, in_map_x * rw[:, None] * step)
            by_y = tl.where(in_map_y == 0, 0.0, in_map_y * rh[:, None] * step)
            sum_w += tl.where((in_map_x == 0) | (i < T), 0.0, in_map_x * raw_x * step)
            sum_h += tl.where((in_map_y == 0) | (i < T), 0.0, in_map_y * raw_y * step)
        elif FUSED == 0:
            by_x = in_map_x
            by_y = in_map_y
        if WANT_POINTS:
            tl.store(grad_points + 2 * at, by_x.to(grad_points.dtype.element_ty), mask=ok & final)
            tl.store(grad_points + 2 * at + 1, by_y.to(grad_points.dtype.element_ty), mask=ok & final)
        if REFERENCE_LEVELS > 0:
            sum_x += tl.where(final, in_map_x, 0.0)
            sum_y += tl.where(final, in_map_y, 0.0)
            # All points of a level, or of all levels, are done. Those of levels without points are 0 already.
            done = final & (t + 1 == (end if REFERENCE_LEVELS > 1 else T))
            to = grad_references + (row * REFERENCE_LEVELS + (level if REFERENCE_LEVELS > 1 else 0))[:, None] * FUSED
            tl.store(to, sum_x, mask=ok & done)
            tl.store(to + 1, sum_y, mask=ok & done)
            if FUSED == 4:
                tl.store(to + 2, sum_w, mask=ok & done)
                tl.store(to + 3, sum_h, mask=ok & done)
            sum_x = tl.where(done, 0.0, sum_x)
            sum_y = tl.where(done, 0.0, sum_y)
            sum_w = tl.where(done, 0.0, sum_w)
            sum_h = tl.where(done, 0.0, sum_h)


@triton.jit
def level_of_point(t, sizes, table, COUNTS: tl.constexpr, BY_TABLE: tl.constexpr):
    """Return the level of a point, where its points end, how many they are, where its pixels begin, and its H and W."""
    level = 0
    end = 0
    count = 0
    start = first_level(BY_TABLE)
    H, W = level_size(0, sizes, table, BY_TABLE)
    first = first_level(BY_TABLE)
    before = 0
    for l in tl.static_range(len(COUNTS)):
        h, w = level_size(l, sizes, table, BY_TABLE)
        here = t >= before
        level = tl.where(here, l, level)
        before += COUNTS[l]
        end = tl.where(here, before, end)
        count = tl.where(here, COUNTS[l], count)
        start = tl.where(here, first, start)
        H = tl.where(here, h, H)
        W = tl.where(here, w, W)
        first = next_level(first, h, w)
    return level, end, count, start, H, W
