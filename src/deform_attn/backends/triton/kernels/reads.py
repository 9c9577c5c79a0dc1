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
