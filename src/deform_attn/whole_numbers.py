"""Whole numbers that a call is given, alone or in a list: what counts as one, and how large it may be."""

import numbers
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch

# Of a side of a map, and of any size or count. The product of two fits into the 64 bits in which torch counts.
MOST = 2**31 - 1
# Of the pixels of a call and the numbers of a projection: more than the 47 bits by which today's processors address.
MOST_NUMBERS = 2**47


def is_list(things: Any) -> TypeGuard[Sequence[Any]]:
    """Return whether something is a sequence; texts and bytes are so in name only."""
    usual = type(things) is list or type(things) is tuple  # asked first, since abstract classes take their time
    return usual or (isinstance(things, Sequence) and not isinstance(things, (str, bytes, bytearray, memoryview)))


def is_int(number: Any) -> bool:
    """Return whether something is an int, a number of NumPy or a symbolic size among them; bool is none."""
    return type(number) is int or (
        isinstance(number, (numbers.Integral, torch.SymInt)) and not isinstance(number, bool)
    )


def plain(number: Any) -> int:
    """Return an int in place of a number of NumPy, whose products overflow; a symbolic size stays."""
    return number if isinstance(number, (int, torch.SymInt)) else int(number)  # type: ignore[return-value]


def fit(sizes: Sequence[int], most: int = MOST) -> bool:
    """Return whether none of the sizes is above `most`, or, of symbolic ones, can be known to be.

    To compare a symbolic size would bound the sizes that its graph is good for.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return not any(statically_known_true(size > most) for size in sizes)
    return not any(isinstance(size, int) and size > most for size in sizes)
