"""The levels of a call, as a kernel sees them: their sizes, and which of their pixels there are."""

import triton
import triton.language as tl

MOST = tl.constexpr(2**31 - 1)  # of a side of a map
MOST_PIXELS = tl.constexpr(2**47)  # so that the sums of a few areas are numbers of 64 bits, too


@triton.jit
def level_size(l, sizes, table, BY_TABLE: tl.constexpr):
    """Return H and W of a level, both 0 where nobody could have a map of these sizes.

    They come as numbers with the launch, or lie in a table `[L, 2]` on the device, which the host has not read.
    """
    if BY_TABLE:
        H = tl.load(table + 2 * l).to(tl.int64)
        W = tl.load(table + 2 * l + 1).to(tl.int64)
        possible = (H >= 0) & (H <= MOST) & (W >= 0) & (W <= MOST)
        return tl.where(possible, H, 0).to(tl.int32), tl.where(possible, W, 0).to(tl.int32)
    else:
        return sizes[2 * l], sizes[2 * l + 1]


@triton.jit
def first_level(BY_TABLE: tl.constexpr):
    """Return where the first level begins: 0, in 64 bits where nobody has judged the sizes."""
    return tl.zeros([], tl.int64 if BY_TABLE else tl.int32)


@triton.jit
def next_level(first, H, W):
    """Return where the next level begins."""
    if first.dtype == tl.int64:
        return first + tl.minimum(H.to(tl.int64) * W, MOST_PIXELS)
    else:
        return first + H * W
