"""The backward pass: the tiles of forward.py; dot products with the gradient of the output go back to `[B, 4]`."""

import triton
import triton.language as tl

from deform_attn.backends.triton.kernels.careful import careful_program
from deform_attn.backends.triton.kernels.geometry import (
    axis,
    coded,
    corners_of,
    decoded,
    four_shares,
    is_read,
    join4,
    split4,
    unmasked,
)
from deform_attn.backends.triton.kernels.levels import first_level, level_size, next_level
from deform_attn.backends.triton.kernels.points import locations_of, references_of, weights_of
from deform_attn.backends.triton.kernels.program import begin
from deform_attn.backends.triton.kernels.reads import dot, read_pixels
from deform_attn.backends.triton.kernels.rows import offset_of


@triton.jit
def pull_corner(
    pull, value, grad_value, code, read_channels, channels, WANT_VALUE: tl.constexpr, WANT_DOTS: tl.constexpr
):
    """Add `pull [B, D]` by the weights of one corner to the gradient of its pixels; return <pull, pixel>, `[B]`."""
    read = is_read(code)[:, None]
    if WANT_VALUE:
        # In float32, whatever value is: GPUs have no fast atomic sums of bfloat16.
        part = decoded(code)[:, None] * pull
        tl.atomic_add(grad_value, part, mask=read & channels, sem="relaxed")
    if WANT_DOTS:
        return dot(read_pixels(value, read & read_channels, pull.shape[0], pull.shape[1], pull.dtype), pull)
    else:
        return decoded(code)


@triton.jit
def pull_point(
    pull,
    value,
    grad_value,
    pixel,
    c00,
    c01,
    c10,
    c11,
    W,
    read_channels,
    channels,
    VALUE_STEP: tl.constexpr,
    STEP: tl.constexpr,
    NEAREST: tl.constexpr,
    WIDE: tl.constexpr,
    WANT_VALUE: tl.constexpr,
    WANT_DOTS: tl.constexpr,
):
    """Do so for the four corners of one point of each row; `pixel [B]` is its upper left one."""
    top = value + offset_of(pixel, VALUE_STEP, WIDE)[:, None]
    to_top = grad_value + offset_of(pixel, STEP, WIDE)[:, None]
    d00 = pull_corner(pull, top, to_top, c00, read_channels, channels, WANT_VALUE, WANT_DOTS)
    if NEAREST:
        return d00, d00, d00, d00
    else:
        bottom = top + offset_of(W, VALUE_STEP, WIDE)
        to_bottom = to_top + offset_of(W, STEP, WIDE)
        d01 = pull_corner(pull, top + VALUE_STEP, to_top + STEP, c01, read_channels, channels, WANT_VALUE, WANT_DOTS)
        d10 = pull_corner(pull, bottom, to_bottom, c10, read_channels, channels, WANT_VALUE, WANT_DOTS)
        d11 = pull_corner(
            pull, bottom + VALUE_STEP, to_bottom + STEP, c11, read_channels, channels, WANT_VALUE, WANT_DOTS
        )
        return d00, d01, d10, d11


@triton.jit(
    do_not_specialize=["Q", "S", "points_q", "weights_q", "references_q", "references_l"]
    + [f"{side}{level}" for level in range(8) for side in "hw"]
)
def backward_kernel(
    grad_output,
    value,
    points,
    weights,
    references,
    mask,
    table,
    grad_value,
    grad_points,
    grad_weights,
    grad_references,
    Q,
    S,
    points_n: tl.int64,
    points_q,
    weights_n: tl.int64,
    weights_q,
    references_n: tl.int64,
    references_q,
    references_l,
    scale: tl.float64,
    h0,
    w0,
    h1,
    w1,
    h2,
    w2,
    h3,
    w3,
    h4,
    w4,
    h5,
    w5,
    h6,
    w6,
    h7,
    w7,
    M: tl.constexpr,
    D: tl.constexpr,
    COUNTS: tl.constexpr,
    FUSED: tl.constexpr,
    NEAREST: tl.constexpr,
    BORDER: tl.constexpr,
    MASKED: tl.constexpr,
    BY_TABLE: tl.constexpr,
    STRIPS: tl.constexpr,
    WIDE: tl.constexpr,
    PAIRS: tl.constexpr,
    WANT_VALUE: tl.constexpr,
    WANT_POINTS: tl.constexpr,
    WANT_WEIGHTS: tl.constexpr,
    REFERENCE_LEVELS: tl.constexpr,
    CAREFUL: tl.constexpr,
    GROUPS: tl.constexpr,
    T: tl.constexpr,
    TP: tl.constexpr,
    B: tl.constexpr,
    BD: tl.constexpr,
    F: tl.constexpr,
):
    """Write the gradients of points and weights, and of references for each head; add to that of value.

    GROUPS are the first point of each four, and how many there are. REFERENCE_LEVELS: for how many levels a gradient of
    the references is wanted, 0 for none. CAREFUL is off only where instructions are counted that every row takes.
    """
    STEP: tl.constexpr = M * D
    VALUE_STEP: tl.constexpr = STEP // 2 if PAIRS else STEP
    L: tl.constexpr = len(COUNTS)
    WANT_DOTS: tl.constexpr = WANT_POINTS or WANT_WEIGHTS or REFERENCE_LEVELS > 0
    sizes = (h0, w0, h1, w1, h2, w2, h3, w3, h4, w4, h5, w5, h6, w6, h7, w7)
    (
        m, n, there, row, pull, pixels, read_channels, of_points, points_at, of_weights, weights_at, of_references,
        references_at, of_mask, most, rescale,
    ) = begin(
        0, grad_output, value, points, weights, references, mask, table, Q, S, points_n, points_q, weights_n, weights_q,
        references_n, references_q, sizes, M, D, L, FUSED, MASKED, BY_TABLE, STRIPS, WIDE, PAIRS, T, TP, B, BD, F,
    )  # fmt: skip
    d = tl.arange(0, BD)[None, :]
    channels = d < D
    if WANT_VALUE:
        grad_value += n * S * STEP + m * D + d
    else:
        grad_value = pixels
    first = first_level(BY_TABLE)
    done: tl.constexpr = 0
    shares = ()
    pulls = ()
    bad = tl.zeros([B, 4], F)
    sum_x = tl.zeros([B, 4], F)
    sum_y = tl.zeros([B, 4], F)
    sum_w = tl.zeros([B, 4], F)
    sum_h = tl.zeros([B, 4], F)
    for l in tl.static_range(L):
        H, W = level_size(l, sizes, table, BY_TABLE)
        rx = most
        ry = most
        rw = most
        rh = most
        if FUSED:
            rx, ry, rw, rh = references_of(of_references, references_at + l * references_l, there, FUSED, F)
        for k in tl.static_range((COUNTS[l] + 3) // 4):
            j = k * 4 + tl.arange(0, 4)
            ok = there[:, None] & (j < COUNTS[l])[None, :]
            t = (done + j)[None, :]
            x, y, raw_x, raw_y = locations_of(
                of_points,
                points_at[:, None] + 2 * t,
                ok,
                rx,
                ry,
                rw,
                rh,
                H,
                W,
                tl.cast(scale, F),
                COUNTS[l],
                FUSED,
                NEAREST,
                F,
            )
            a = weights_of(of_weights, weights_at[:, None] + t, ok, most, rescale, FUSED, F)
            c, u, moves_x = axis(x, W, BORDER)
            r, v, moves_y = axis(y, H, BORDER)
            pixel, on00, on01, on10, on11 = corners_of(c, r, ok, H, W, first, S)
            s00, s01, s10, s11 = four_shares(u, v)
            if NEAREST:
                s00 = s00 * 0 + 1
            c00 = coded(a * s00, unmasked(on00, of_mask, pixel) if MASKED else on00)
            c01 = c00
            c10 = c00
            c11 = c00
            if not NEAREST:
                c01 = coded(a * s01, unmasked(on01, of_mask, pixel + 1) if MASKED else on01)
                c10 = coded(a * s10, unmasked(on10, of_mask, pixel + W) if MASKED else on10)
                c11 = coded(a * s11, unmasked(on11, of_mask, pixel + W + 1) if MASKED else on11)
            p0, p1, p2, p3 = split4(pixel, B)
            e0, e1, e2, e3 = split4(c00, B)
            f0, f1, f2, f3 = split4(c01, B)
            g0, g1, g2, g3 = split4(c10, B)
            i0, i1, i2, i3 = split4(c11, B)
            a00, a01, a10, a11 = pull_point(
                pull, pixels, grad_value, p0, e0, f0, g0, i0, W, read_channels, channels,
                VALUE_STEP, STEP, NEAREST, WIDE, WANT_VALUE, WANT_DOTS,
            )  # fmt: skip
            b00, b01, b10, b11 = a00, a01, a10, a11
            if k * 4 + 1 < COUNTS[l]:
                b00, b01, b10, b11 = pull_point(
                    pull, pixels, grad_value, p1, e1, f1, g1, i1, W, read_channels, channels,
                    VALUE_STEP, STEP, NEAREST, WIDE, WANT_VALUE, WANT_DOTS,
                )  # fmt: skip
            q00, q01, q10, q11 = a00, a01, a10, a11
            if k * 4 + 2 < COUNTS[l]:
                q00, q01, q10, q11 = pull_point(
                    pull, pixels, grad_value, p2, e2, f2, g2, i2, W, read_channels, channels,
                    VALUE_STEP, STEP, NEAREST, WIDE, WANT_VALUE, WANT_DOTS,
                )  # fmt: skip
            z00, z01, z10, z11 = a00, a01, a10, a11
            if k * 4 + 3 < COUNTS[l]:
                z00, z01, z10, z11 = pull_point(
                    pull, pixels, grad_value, p3, e3, f3, g3, i3, W, read_channels, channels,
                    VALUE_STEP, STEP, NEAREST, WIDE, WANT_VALUE, WANT_DOTS,
                )  # fmt: skip
            if WANT_DOTS:
                d00 = join4(a00, b00, q00, z00, B)
                by_weight = d00
                by_x = tl.zeros([B, 4], F)
                by_y = tl.zeros([B, 4], F)
                if not NEAREST:
                    d01 = join4(a01, b01, q01, z01, B)
                    d10 = join4(a10, b10, q10, z10, B)
                    d11 = join4(a11, b11, q11, z11, B)
                    across_top = d01 - d00
                    across_bottom = d11 - d10
                    above = tl.fma(u, across_top, d00)
                    down = tl.fma(u, across_bottom, d10) - above
                    by_weight = tl.fma(v, down, above)
                    by_x = a * tl.fma(v, across_bottom - across_top, across_top)
                    by_y = a * down
                    if BORDER:
                        by_x = tl.where(moves_x, by_x, 0.0)
                        by_y = tl.where(moves_y, by_y, 0.0)
                bad = tl.fma(by_weight + by_x + by_y + (x + y), 0.0, bad)
                at = row[:, None] * T + t
                if FUSED:
                    shares = shares + (a,)
                    pulls = pulls + (by_weight,)
                elif WANT_WEIGHTS:
                    tl.store(grad_weights + at, by_weight.to(grad_weights.dtype.element_ty), mask=ok)
                in_map_x = by_x * W.to(F)
                in_map_y = by_y * H.to(F)
                if FUSED == 4:
                    # 0 stays 0: a box or offset that is not finite has put the point where it gets no gradient.
                    step = tl.cast(scale, F) / COUNTS[l]
                    by_x = tl.where(in_map_x == 0, 0.0, in_map_x * rw[:, None] * step)
                    by_y = tl.where(in_map_y == 0, 0.0, in_map_y * rh[:, None] * step)
                    sum_w += tl.where(in_map_x == 0, 0.0, in_map_x * raw_x * step)
                    sum_h += tl.where(in_map_y == 0, 0.0, in_map_y * raw_y * step)
                elif FUSED == 0:
                    by_x = in_map_x
                    by_y = in_map_y
                sum_x += in_map_x
                sum_y += in_map_y
                if WANT_POINTS:
                    tl.store(grad_points + 2 * at, by_x.to(grad_points.dtype.element_ty), mask=ok)
                    tl.store(grad_points + 2 * at + 1, by_y.to(grad_points.dtype.element_ty), mask=ok)
        if REFERENCE_LEVELS > 0 and (REFERENCE_LEVELS > 1 or l == L - 1):
            to = grad_references + (row * REFERENCE_LEVELS + (l if REFERENCE_LEVELS > 1 else 0)) * FUSED
            tl.store(to, tl.sum(sum_x, 1), mask=there)
            tl.store(to + 1, tl.sum(sum_y, 1), mask=there)
            if FUSED == 4:
                tl.store(to + 2, tl.sum(sum_w, 1), mask=there)
                tl.store(to + 3, tl.sum(sum_h, 1), mask=there)
            sum_x = tl.zeros([B, 4], F)
            sum_y = tl.zeros([B, 4], F)
            sum_w = tl.zeros([B, 4], F)
            sum_h = tl.zeros([B, 4], F)
        first = next_level(first, H, W)
        done += COUNTS[l]
    if FUSED and WANT_WEIGHTS:
        total = tl.zeros([B, 4], F)
        for i in tl.static_range(len(shares)):
            total += shares[i] * pulls[i]
        mean = tl.sum(total, 1)[:, None]
        j = tl.arange(0, 4)
        for i in tl.static_range(len(shares)):
            by_logit = shares[i] * (pulls[i] - mean)
            at = row[:, None] * T + (GROUPS[2 * i] + j)[None, :]
            ok = there[:, None] & (j < GROUPS[2 * i + 1])[None, :]
            tl.store(grad_weights + at, by_logit.to(grad_weights.dtype.element_ty), mask=ok)
    if WANT_DOTS and CAREFUL:
        # In most programs no row is bad. Bits of the others stay what they are.
        spoilt = tl.sum(bad, 1) != 0
        found = tl.max((spoilt & there).to(tl.int32), 0)
        if found > 0:
            careful_program(
                found - 1, spoilt, grad_output, value, points, weights, references, mask, table, grad_points,
                grad_weights, grad_references, Q, S, points_n, points_q, weights_n, weights_q, references_n,
                references_q, references_l, tl.cast(scale, F), sizes, M, D, COUNTS, FUSED, NEAREST, BORDER, MASKED,
                BY_TABLE, STRIPS, WIDE, PAIRS, WANT_POINTS, WANT_WEIGHTS, REFERENCE_LEVELS, T, TP, B, BD, F,
            )  # fmt: skip
