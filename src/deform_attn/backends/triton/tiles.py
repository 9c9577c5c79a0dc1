"""Tiles: how many rows a program has, and how many warps, by what a call looks like and not by the image's size."""

from typing import NamedTuple

from torch import Tensor

# Rows of 32 channels a warp has, 8 numbers a thread: more at a time do not fit into the registers of a backward pass.
_NUMBERS_A_WARP = 256
_MOST_ROWS = 128
# Below so many rows a call does not fill a GPU: small programs then end sooner.
_FEW_ROWS = 16384


class Tile(NamedTuple):
    """B rows of BD channels, on so many warps."""

    B: int
    BD: int
    num_warps: int


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number, 1 of 0."""
    return 1 << max(number - 1, 0).bit_length()


def groups_of(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first point and the number of points of each group of four, level by level, flat."""
    groups: list[int] = []
    first = 0
    for count in counts:
        for k in range(0, count, 4):
            groups += (first + k, min(4, count - k))
        first += count
    return tuple(groups)


def tile_of(
    D: int, rows: int, strips: bool, fused: bool, backward: bool, interpreted: bool, few_registers: bool = False
) -> Tile:
    """Return the tile of a call of this many rows with D channels; `few_registers`: they would not do."""
    BD = max(4, power_of_two(D))
    if interpreted:  # it pays for programs, whatever their size is
        return Tile(min(_MOST_ROWS, power_of_two(max(rows, 4))), BD, 1)
    warps = 1 if not strips and rows < _FEW_ROWS else 4
    if strips:
        warps = 4 if backward else 16
    numbers = _NUMBERS_A_WARP * warps
    # The fused backward pass keeps more numbers, and with many channels they would not fit either.
    if backward and warps > 1 and (few_registers or (fused and BD > 32)):
        numbers //= 2
    return Tile(max(1, min(_MOST_ROWS, numbers // BD)), BD, warps)


def is_wide(*tensors: Tensor | None) -> bool:
    """Return whether 32 bits do not hold the place of a number within an image of one of these tensors."""
    return any(_reach(tensor) >= 2**31 for tensor in tensors if tensor is not None)


def _reach(tensor: Tensor) -> int:
    return sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True)) + 1
