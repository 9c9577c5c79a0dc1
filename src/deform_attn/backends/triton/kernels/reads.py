"""Reads of pixels: a tile `[B, D]` of value, in the dtype of the sums."""

import triton
import triton.language as tl


@triton.jit
def channels_of(value, D: tl.constexpr, BD: tl.constexpr, PAIRS: tl.constexpr):
    """Return the addresses of the channels of a pixel, `[1, BD]`, and which of them there are.

    PAIRS: the channels are an even number of bfloat16, read two at a time as an integer.
    """
    if PAIRS:
        pair = tl.arange(0, BD // 2)[None, :]
        return value.to(tl.pointer_type(tl.int32)) + pair, pair < D // 2
    else:
        d = tl.arange(0, BD)[None, :]
        return value + d, d < D


@triton.jit
def read_pixels(pixels, read, B: tl.constexpr, BD: tl.constexpr, F: tl.constexpr):
    """Return pixels `[B, BD]`, 0 where they are not read."""
    if pixels.dtype.element_ty == tl.int32:  # bfloat16 are the upper halves of float32
        pairs = tl.load(pixels, mask=read, other=0)
        low = (pairs << 16).to(tl.float32, bitcast=True)
        high = (pairs & -65536).to(tl.float32, bitcast=True)
        return tl.reshape(tl.join(low, high), [B, BD])
    else:
        return tl.load(pixels, mask=read, other=0.0).to(F)


@triton.jit
def dot(x, y):
    """Return the sums of x * y along the last axis, `[B]` of `[B, BD]`.

    Four channels, which lie in one lane, are summed by fused multiply-adds.
    """
    x0, x1, x2, x3 = fourths(x)
    y0, y1, y2, y3 = fourths(y)
    return tl.sum(tl.fma(x3, y3, tl.fma(x2, y2, tl.fma(x1, y1, x0 * y0))), 1)


@triton.jit
def fourths(x):
    """Return every fourth channel, from each of the first four on, `[B, BD/4]` each of `[B, BD]`."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 4, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3
