"""The forward pass: a level at a time, four points at a time; geometry once as `[B, 4]`, then reads of `[B, D]`."""

import triton
import triton.language as tl

from deform_attn.backends.triton.kernels.geometry import (
    axis,
    coded,
    corners_of,
    decoded,
    four_shares,
    is_read,
    split4,
    unmasked,
)
from deform_attn.backends.triton.kernels.levels import first_level, level_size, next_level
from deform_attn.backends.triton.kernels.points import exponentials_of, locations_of, references_of, shares_of
from deform_attn.backends.triton.kernels.program import places_of
from deform_attn.backends.triton.kernels.reads import channels_of, read_pixels
from deform_attn.backends.triton.kernels.rows import offset_of, rows_of


@triton.jit
def add_corner(sums, pixels, code, channels):
    """Return `sums [B, D]` with the pixels of one corner, by their coded weights `[B]`, added."""
    pixel = read_pixels(pixels, is_read(code)[:, None] & channels, sums.shape[0], sums.shape[1], sums.dtype)
    return tl.fma(tl.broadcast_to(decoded(code)[:, None], sums.shape), pixel, sums)


@triton.jit
def add_point(
    sums, value, pixel, c00, c01, c10, c11, W, channels, STEP: tl.constexpr, NEAREST: tl.constexpr, WIDE: tl.constexpr
):
    """Return `sums [B, D]` with what one point of each row reads added; `pixel [B]` is its upper left one."""
    # Multiplied here: Triton knows the alignment of a product, but loses it on the way through a split.
    top = value + offset_of(pixel, STEP, WIDE)[:, None]
    sums = add_corner(sums, top, c00, channels)
    if not NEAREST:
        bottom = top + offset_of(W, STEP, WIDE)
        sums = add_corner(sums, top + STEP, c01, channels)
        sums = add_corner(sums, bottom, c10, channels)
        sums = add_corner(sums, bottom + STEP, c11, channels)
    return sums


@triton.jit
def codes(x, y, a, ok, H, W, first, S, mask, NEAREST: tl.constexpr, BORDER: tl.constexpr, MASKED: tl.constexpr):
    """Return of points `[B, 4]` the upper left pixel, the coded weights of the corners, and what is bad all the same.

    That is 0, or NaN where the location is, or where a weight is not finite and nothing is read that it would spoil.
    """
    c, u, _ = axis(x, W, BORDER)
    r, v, _ = axis(y, H, BORDER)
    pixel, on00, on01, on10, on11 = corners_of(c, r, ok, H, W, first, S)
    if MASKED:
        on00 = unmasked(on00, mask, pixel)
    if NEAREST:
        read = on00
        code00 = coded(a, on00)
        code01 = code00
        code10 = code00
        code11 = code00
    else:
        # A corner with a share of 0 is not read; that of the upper left one is 0 only off the map.
        on01 = on01 & (u != 0)
        on10 = on10 & (v != 0)
        on11 = on11 & (u != 0) & (v != 0)
        if MASKED:
            on01 = unmasked(on01, mask, pixel + 1)
            on10 = unmasked(on10, mask, pixel + W)
            on11 = unmasked(on11, mask, pixel + W + 1)
        read = on00 | on01 | on10 | on11
        s00, s01, s10, s11 = four_shares(u, v)
        code00 = coded(a * s00, on00)
        code01 = coded(a * s01, on01)
        code10 = coded(a * s10, on10)
        code11 = coded(a * s11, on11)
    bad = tl.where(ok & ((x != x) | (y != y)), x + y, tl.where(read, 0.0, a * 0.0))
    return pixel, code00, code01, code10, code11, bad


@triton.jit(
    do_not_specialize=["Q", "S", "points_q", "weights_q", "references_q", "references_l"]
    + [f"{side}{level}" for level in range(8) for side in "hw"]
)
def forward_kernel(
    value,
    points,
    weights,
    references,
    mask,
    table,
    output,
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
    T: tl.constexpr,
    TP: tl.constexpr,
    B: tl.constexpr,
    BD: tl.constexpr,
    F: tl.constexpr,
):
    """Write `output [N, Q, M*D]`; see launch.py for the arguments.

    A program has B queries of one head of one image.
    """
    STEP: tl.constexpr = M * D
    VALUE_STEP: tl.constexpr = STEP // 2 if PAIRS else STEP
    L: tl.constexpr = len(COUNTS)
    sizes = (h0, w0, h1, w1, h2, w2, h3, w3, h4, w4, h5, w5, h6, w6, h7, w7)
    m = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    q, there = rows_of(tl.program_id(0), Q, sizes, table, L, B, BY_TABLE, STRIPS)
    d = tl.arange(0, BD)
    channels = (d < D)[None, :]
    value += n * S * STEP + m * D
    value, read_channels = channels_of(value, D, BD, PAIRS)
    mask = mask + n * S if MASKED else mask
    points, points_at, weights, weights_at, references, references_at = places_of(
        points, weights, references, m, n, q, points_n, points_q, weights_n, weights_q, references_n, references_q,
        T, FUSED, WIDE,
    )  # fmt: skip
    rescale = tl.zeros([B], F)
    exponentials = ()
    if FUSED:
        exponentials, rescale = exponentials_of(weights, weights_at, there, COUNTS, B, F)
    sums = tl.zeros([B, BD], F)
    bad = tl.zeros([B, 4], F)
    first = first_level(BY_TABLE)
    done: tl.constexpr = 0
    for l in tl.static_range(L):
        H, W = level_size(l, sizes, table, BY_TABLE)
        rx = rescale
        ry = rescale
        rw = rescale
        rh = rescale
        if FUSED:
            rx, ry, rw, rh = references_of(references, references_at + l * references_l, there, FUSED, F)
        for k in tl.static_range((COUNTS[l] + 3) // 4):
            j = k * 4 + tl.arange(0, 4)
            ok = (there & (H > 0) & (W > 0))[:, None] & (j < COUNTS[l])[None, :]
            t = (done + j)[None, :]
            x, y, _, _ = locations_of(
                points,
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
            if FUSED:
                a = tl.where(ok, shares_of(exponentials[0], rescale, F), 0.0)
                exponentials = exponentials[1:]
            else:
                a = tl.load(weights + weights_at[:, None] + t, mask=ok, other=0.0).to(F)
            pixel, c00, c01, c10, c11, spoilt = codes(x, y, a, ok, H, W, first, S, mask, NEAREST, BORDER, MASKED)
            bad += spoilt
            p0, p1, p2, p3 = split4(pixel, B)
            e0, e1, e2, e3 = split4(c00, B)
            f0, f1, f2, f3 = split4(c01, B)
            g0, g1, g2, g3 = split4(c10, B)
            h0_, h1_, h2_, h3_ = split4(c11, B)
            sums = add_point(sums, value, p0, e0, f0, g0, h0_, W, read_channels, VALUE_STEP, NEAREST, WIDE)
            if k * 4 + 1 < COUNTS[l]:
                sums = add_point(sums, value, p1, e1, f1, g1, h1_, W, read_channels, VALUE_STEP, NEAREST, WIDE)
            if k * 4 + 2 < COUNTS[l]:
                sums = add_point(sums, value, p2, e2, f2, g2, h2_, W, read_channels, VALUE_STEP, NEAREST, WIDE)
            if k * 4 + 3 < COUNTS[l]:
                sums = add_point(sums, value, p3, e3, f3, g3, h3_, W, read_channels, VALUE_STEP, NEAREST, WIDE)
        first = next_level(first, H, W)
        done += COUNTS[l]
    sums += tl.sum(bad, 1)[:, None]
    output += (n * Q * M + m) * D
    at = offset_of(q, STEP, WIDE)[:, None] + d[None, :]
    tl.store(output + at, sums.to(output.dtype.element_ty), mask=there[:, None] & channels)
