"""The rows of a program: B queries of one head of one image, and in which order the queries are visited."""

import triton
import triton.language as tl

from deform_attn.backends.triton.kernels.levels import first_level, level_size, next_level


@triton.jit
def rows_of(tile, Q, sizes, table, L: tl.constexpr, B: tl.constexpr, BY_TABLE: tl.constexpr, STRIPS: tl.constexpr):
    """Return the queries of a tile `[B]`, and which of them there are.

    STRIPS: the queries are the pixels of the maps, at most 2^17. A tile lies on one level and goes down strips of 8
    columns, so that neighbours, who read much the same pixels, are in one program. Rows do not depend on the order.
    """
    i = tile * B + tl.arange(0, B)
    there = i < Q
    q = tl.where(there, i, 0)
    if STRIPS:
        first, H, W, i = level_of(tile, sizes, table, L, B, BY_TABLE)
        there_too = i < H * W
        q_too = tl.where(there_too, in_strips(i, first, H, W), 0)
        if BY_TABLE:  # nobody has judged whether these sizes are those of the queries
            total = first_level(BY_TABLE)
            for l in tl.static_range(L):
                H, W = level_size(l, sizes, table, BY_TABLE)
                total = next_level(total, H, W)
            q = tl.where(total == Q, q_too, q)
            there = tl.where(total == Q, there_too, there)
        else:
            q = q_too
            there = there_too
    return q, there


@triton.jit
def level_of(tile, sizes, table, L: tl.constexpr, B: tl.constexpr, BY_TABLE: tl.constexpr):
    """Return where the level of a tile begins, its size, and which of its pixels are the tile's, `[B]`.

    Each level begins with a tile of its own.
    """
    H, W = level_size(0, sizes, table, BY_TABLE)
    first = 0
    start = 0
    pixels = 0
    tiles = 0
    for l in tl.static_range(L):
        h, w = level_size(l, sizes, table, BY_TABLE)
        here = tile >= tiles
        first = tl.where(here, pixels, first)
        start = tl.where(here, tiles, start)
        H = tl.where(here, h, H)
        W = tl.where(here, w, W)
        pixels += h * w
        tiles += (h * w + B - 1) // B
    return first, H, W, (tile - start) * B + tl.arange(0, B)


@triton.jit
def in_strips(i, first, H, W):
    """Return the pixels of ranks `i [B]` in strips of 8 columns, whose last one may be narrower.

    The halves keep quotients away from whole numbers, by more than float32 rounds them while there are 2^17 pixels.
    """
    column = ((i + 0.5) * (1 / (8 * H).to(tl.float32))).to(tl.int32) * 8
    rest = W % 8
    is_last = column + rest == W
    narrow = tl.where(is_last & (rest > 0), rest, 8)
    i -= column * H
    row = ((i + 0.5) * tl.where(narrow == 8, 0.125, 1 / rest.to(tl.float32))).to(tl.int32)
    return first + row * W + column + i - row * narrow


@triton.jit
def offset_of(index, step, WIDE: tl.constexpr):
    """Return index * step, in 64 bits where 32 do not hold it."""
    return index.to(tl.int64) * step if WIDE else index * step
