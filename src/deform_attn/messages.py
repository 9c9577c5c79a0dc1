"""The form of every error message: the argument, what was expected, what came, and one fix."""

import reprlib
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


def fail(argument: str, expected: str, got: str, fix: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise the error of one wrong argument."""
    raise error(f"{argument}: expected {expected}, got {got}. {fix}")


def shape_text(sizes: Sequence[int]) -> str:
    """Return the shape of a tensor as messages show it."""
    return "[" + ", ".join(map(str, sizes)) + "]"


def dtype_text(tensor: Tensor) -> str:
    """Return the dtype of a tensor as messages show it."""
    return str(tensor.dtype).removeprefix("torch.")


def shown(thing: Any) -> str:
    """Return what came, whatever it is, in at most a line."""
    return _SHORT.repr(thing)


class _Short(reprlib.Repr):
    """Short texts, also of what has no text: tensors without numbers, and ints too long for Python to print."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = 8
        self.maxstring = self.maxother = self.maxlong = 80

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, Tensor):
            return f"a {dtype_text(x)} tensor"
        if isinstance(x, int) and x.bit_length() > 64:
            return f"an int of {x.bit_length()} bits"
        if torch.compiler.is_dynamo_compiling():
            return repr(x)  # the compiler of torch 2.10 does not follow reprlib
        return " ".join(super().repr1(x, level).split())


_SHORT = _Short()
