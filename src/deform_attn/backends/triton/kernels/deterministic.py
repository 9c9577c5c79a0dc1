"""The gradient of value without atomic sums: points sorted by the cell that they lie in, then gathered by its pixels.

Each pixel adds up, in the order of the points, what lies in the four cells around it. So the bits are always the same.
A cell is known by its first pixel on the map and by its kind: whether its upper and its left corners are off the map.
"""

import triton
import triton.language as tl

from deform_attn.backends.triton.kernels.geometry import axis, corners_of, in_pixels
from deform_attn.backends.triton.kernels.levels import first_level, level_size, next_level
from deform_attn.backends.triton.kernels.points import (
    beside_box,
    beside_point,
    inverses,
    locations_of,
    references_of,
    softmax_terms,
    weights_of,
)
from deform_attn.backends.triton.kernels.program import places_of
from deform_attn.backends.triton.kernels.rows import offset_of

SIZES = [f"{side}{level}" for level in range(8) for side in "hw"]


@triton.jit(do_not_specialize=["N", "Q", "S", "points_q", "weights_q", "references_q", "references_l", *SIZES])
def key_kernel(
    points, weights, references, table, keys, shares, N, Q, S, points_n: tl.int64, points_q, weights_n: tl.int64,
    weights_q, references_n: tl.int64, references_q, references_l, scale: tl.float64, h0, w0, h1, w1, h2, w2, h3, w3,
    h4, w4, h5, w5, h6, w6, h7, w7, M: tl.constexpr, COUNTS: tl.constexpr, FUSED: tl.constexpr, NEAREST: tl.constexpr,
    BORDER: tl.constexpr, BY_TABLE: tl.constexpr, WIDE: tl.constexpr, T: tl.constexpr, TP: tl.constexpr,
    B: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Write the cell of each point, `keys [N, Q, M, T]`, one behind the last where it reads nothing.

    FUSED: and its weight, `shares [N, Q, M, T]`.
    """
    L: tl.constexpr = len(COUNTS)
    sizes = (h0, w0, h1, w1, h2, w2, h3, w3, h4, w4, h5, w5, h6, w6, h7, w7)
    m = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    q = tl.program_id(0) * B + tl.arange(0, B)
    there = q < Q
    q = tl.where(there, q, 0)
    row = (n * Q * M + m).to(tl.int64) + q.to(tl.int64) * M
    points, points_at, weights, weights_at, references, references_at = places_of(
        points, weights, references, m, n, q, points_n, points_q, weights_n, weights_q, references_n, references_q,
        T, FUSED, WIDE,
    )  # fmt: skip
    most = tl.zeros([B], F)
    rescale = tl.zeros([B], F)
    if FUSED:
        most, rescale = softmax_terms(weights, weights_at, there, T, TP, F)
    K = keys.dtype.element_ty
    none = tl.cast(N, K) * M * S * 4
    cells = (tl.program_id(2).to(K) * M + m) * S
    first = first_level(BY_TABLE)
    done: tl.constexpr = 0
    for l in tl.static_range(L):
        H, W = level_size(l, sizes, table, BY_TABLE)
        rx = most
        ry = most
        rw = most
        rh = most
        if FUSED:
            rx, ry, rw, rh = references_of(references, references_at + l * references_l, there, FUSED, F)
        for k in tl.static_range((COUNTS[l] + 3) // 4):
            j = k * 4 + tl.arange(0, 4)
            ok = there[:, None] & (j < COUNTS[l])[None, :]
            t = (done + j)[None, :]
            x, y, _, _ = locations_of(
                points, points_at[:, None] + 2 * t, ok, rx, ry, rw, rh, H, W, tl.cast(scale, F), COUNTS[l], FUSED,
                NEAREST, F,
            )  # fmt: skip
            c, _, _ = axis(x, W, BORDER)
            r, _, _ = axis(y, H, BORDER)
            pixel, on00, on01, on10, on11 = corners_of(c, r, ok, H, W, first, S)
            read = on00 if NEAREST else on00 | on01 | on10 | on11
            pixel += tl.where(r < 0, W, 0) + tl.where(c < 0, 1, 0)
            kind = tl.where(r < 0, 2, 0) + tl.where(c < 0, 1, 0)
            at = row[:, None] * T + t
            tl.store(keys + at, tl.where(read, (cells + pixel) * 4 + kind, none), mask=ok)
            if FUSED:
                tl.store(
                    shares + at, weights_of(weights, weights_at[:, None] + t, ok, most, rescale, FUSED, F), mask=ok
                )
        first = next_level(first, H, W)
        done += COUNTS[l]


@triton.jit(do_not_specialize=["Q", "S", "points_q", "weights_q", "references_q", "references_l", "scale", *SIZES])
def gather_kernel(
    order, bounds, grad_output, points, weights, references, mask, table, grad_value, Q, S, points_n: tl.int64,
    points_q, weights_n: tl.int64, weights_q, references_n: tl.int64, references_q, references_l, scale: tl.float64, h0,
    w0, h1, w1, h2, w2, h3, w3, h4, w4, h5, w5, h6, w6, h7, w7, M: tl.constexpr, D: tl.constexpr, COUNTS: tl.constexpr,
    FUSED: tl.constexpr, NEAREST: tl.constexpr, BORDER: tl.constexpr, MASKED: tl.constexpr, BY_TABLE: tl.constexpr,
    WIDE: tl.constexpr, ADD: tl.constexpr, T: tl.constexpr, B: tl.constexpr, BD: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """Write `grad_value [N, S, M, D]`, or add to it; a program has B pixels of one head.

    `order [N*Q*M*T]` are the points by their cells, `bounds` where the points of each cell begin in it; `weights` are
    those of a softmax, dense.
    """
    L: tl.constexpr = len(COUNTS)
    sizes = (h0, w0, h1, w1, h2, w2, h3, w3, h4, w4, h5, w5, h6, w6, h7, w7)
    m = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    s = tl.program_id(0) * B + tl.arange(0, B)
    H = tl.zeros([B], tl.int32)
    W = tl.zeros([B], tl.int32)
    P = tl.zeros([B], tl.int32) + 1
    level = tl.zeros([B], tl.int32)
    in_level = tl.zeros([B], tl.int32)
    first = first_level(BY_TABLE)
    for l in tl.static_range(L):
        h, w = level_size(l, sizes, table, BY_TABLE)
        here = (s >= first) & (h > 0) & (w > 0)
        following = next_level(first, h, w)
        here = here & (s < following)
        H = tl.where(here, h, H)
        W = tl.where(here, w, W)
        P = tl.where(here, COUNTS[l], P)
        level = tl.where(here, l, level)
        in_level = tl.where(here, (s - first).to(tl.int32), in_level)
        first = following
    there = (s < S) & (W > 0)
    row = in_level // tl.maximum(W, 1)
    column = in_level - row * W
    d = tl.arange(0, BD)[None, :]
    channels = d < D
    grad_output += (n * Q * M + m) * D + d
    points += n * points_n + m * (2 * T)
    weights += n * weights_n + m * T
    cells = ((n * M + m) * S).to(tl.int64)
    sums = tl.zeros([B, BD], F)
    for below in tl.static_range(1 if NEAREST else 2):
        for right in tl.static_range(1 if NEAREST else 2):
            # The cell whose corner this pixel is begins one row or column before it, perhaps off the map.
            kind = tl.where(row < below, 2, 0) + tl.where(column < right, 1, 0)
            pixel = s - tl.where(row < below, 0, below * W) - tl.where(column < right, 0, right)
            key = (cells + pixel) * 4 + kind
            begin = tl.load(bounds + key, mask=there, other=0)
            end = tl.load(bounds + key + 1, mask=there, other=0)
            for i in range(0, tl.max(end - begin, 0)):
                ok = begin + i < end
                point = tl.load(order + begin + i, mask=ok, other=0)
                q = (point // (T * M)) % Q
                t = (point % T).to(tl.int32)
                q = q if WIDE else q.to(tl.int32)
                at = points + (offset_of(q, points_q, WIDE) + 2 * t)[:, None]
                x = tl.load(at, mask=ok[:, None], other=0.0).to(F)
                y = tl.load(at + 1, mask=ok[:, None], other=0.0).to(F)
                if FUSED:
                    of_query = references + n * references_n + offset_of(q, references_q, WIDE)
                    rx, ry, rw, rh = references_of(of_query, level * references_l, ok, FUSED, F)
                    if FUSED == 4:
                        x = beside_box(rx, rw, x, tl.cast(scale, F), P[:, None].to(F))
                        y = beside_box(ry, rh, y, tl.cast(scale, F), P[:, None].to(F))
                    else:
                        wide, high = W[:, None].to(F), H[:, None].to(F)
                        per_wide, per_high = inverses(wide, high)
                        x = beside_point(rx, x, wide, per_wide)
                        y = beside_point(ry, y, high, per_high)
                a = tl.load(weights + offset_of(q, weights_q, WIDE) + t, mask=ok, other=0.0).to(F)[:, None]
                _, u, _ = axis(in_pixels(x, W[:, None], NEAREST), W[:, None], BORDER)
                _, v, _ = axis(in_pixels(y, H[:, None], NEAREST), H[:, None], BORDER)
                across = u if right else 1 - u
                down = v if below else 1 - v
                weight = a if NEAREST else a * (across * down)
                pull = tl.load(
                    grad_output + offset_of(q, M * D, WIDE)[:, None], mask=ok[:, None] & channels, other=0.0
                ).to(F)
                sums = tl.fma(tl.broadcast_to(weight, sums.shape), pull, sums)
    if MASKED:
        hidden = tl.load(mask + n * S + s, mask=s < S, other=0) != 0
        sums = tl.where(hidden[:, None], 0.0, sums)
    to = grad_value + n * S * M * D + m * D + offset_of(s, M * D, WIDE)[:, None] + d
    if ADD:
        sums += tl.load(to, mask=(s < S)[:, None] & channels, other=0.0)
    tl.store(to, sums.to(grad_value.dtype.element_ty), mask=(s < S)[:, None] & channels)
