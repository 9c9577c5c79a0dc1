"""Geometry of points: which pixels they read, and with what shares; the rules are those of cells.py."""

import triton
import triton.language as tl


@triton.jit
def in_pixels(coordinate, size, NEAREST: tl.constexpr):
    """Return a coordinate in pixels of a map of this size; of nearest the corner of the pixel that it lies in."""
    x = coordinate * size.to(coordinate.dtype)
    return tl.floor(x) if NEAREST else x - 0.5


@triton.jit
def axis(x, size, BORDER: tl.constexpr):
    """Return the pixel below `x`, the share of the one above, and whether the share moves with `x`.

    What is read nowhere, NaN and infinity too, lies between pixels -2 and -1; only then is it made an integer, since
    what becomes of other numbers differs among devices.
    """
    moves = x == x
    at = x
    last = size - 1
    end = last.to(x.dtype)
    if BORDER:
        moves = (x >= 0) & (x < end)
        at = tl.where(x >= end, end, tl.where(x < 0, 0.0, x))
    at = tl.where((at > -1) & (at < 2147483648.0), at, -2.0)
    whole = tl.floor(at)
    low = whole.to(tl.int32)
    if BORDER:
        low = tl.where(x > end, last, tl.minimum(low, last))
    return low, at - whole, moves


@triton.jit
def within(i, size):
    """Return whether 0 <= i < size."""
    return i.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit
def corners_of(c, r, ok, H, W, first, S):
    """Return the index of pixel (r, c) of a level, and which there are of it, (r, c + 1), (r + 1, c), (r + 1, c + 1).

    Where `first` has 64 bits, nobody has compared the sizes of the maps with the S pixels that there are.
    """
    left = within(c, W)
    right = within(c + 1, W)
    top = within(r, H) & ok
    bottom = within(r + 1, H) & ok
    on00 = left & top
    on01 = right & top
    on10 = left & bottom
    on11 = right & bottom
    pixel = first + r.to(first.dtype) * W + c
    if first.dtype == tl.int64:
        on00 = on00 & (pixel < S)
        on01 = on01 & (pixel + 1 < S)
        on10 = on10 & (pixel + W < S)
        on11 = on11 & (pixel + W + 1 < S)
    return pixel.to(tl.int32), on00, on01, on10, on11


@triton.jit
def unmasked(on, mask, pixel):
    """Return which of these pixels are on the map and not padding."""
    return on & (tl.load(mask + pixel, mask=on, other=1) == 0)


@triton.jit
def four_shares(u, v):
    """Return what of a weight of 1 the four corners get."""
    return (1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v


@triton.jit
def coded(weight, read):
    """Return the bits of a weight, or those of -0.0 where nothing is read; a weight of 0 that is read is +0.0.

    As bits, since Triton makes a literal -0.0 into +0.0.
    """
    if weight.dtype == tl.float64:
        return tl.where(read, (weight + 0.0).to(tl.int64, bitcast=True), -9223372036854775808)
    else:
        return tl.where(read, (weight + 0.0).to(tl.int32, bitcast=True), -2147483648)


@triton.jit
def is_read(code):
    """Return whether this code of a weight says that something is read."""
    if code.dtype == tl.int64:
        return code != -9223372036854775808
    else:
        return code != -2147483648


@triton.jit
def decoded(code):
    """Return the weight of a code."""
    if code.dtype == tl.int64:
        return code.to(tl.float64, bitcast=True)
    else:
        return code.to(tl.float32, bitcast=True)


@triton.jit
def split4(x, B: tl.constexpr):
    """Return the four columns `[B]` of a tile `[B, 4]`."""
    even, odd = tl.split(tl.reshape(x, [B, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def join4(x0, x1, x2, x3, B: tl.constexpr):
    """Return the tile `[B, 4]` of four columns `[B]`."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), [B, 4])
