"""Calls that torch.compile does not follow, marked as such.

The marks import the whole compiler, which takes longer than torch itself; so this module is imported while a graph is
made, and not before.
"""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def constant(function: Callable[[], Any]) -> Any:
    """Return what a function returns while the graph is made, as a constant of the graph."""
    return function()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def autocast_available(device: str) -> bool:
    """Return whether a kind of device has autocast, which the compiler of torch 2.10 cannot ask."""
    return torch.amp.is_autocast_available(device)


# What needs the numbers themselves gets them outside of a graph of torch.compile, and this reason where it may not.
@torch.compiler.disable(
    reason="spatial_shapes: expected pairs of ints (H, W), got a tensor. With fullgraph=True and in torch.export "
    "pass a list of int pairs.",
)  # type: ignore[untyped-decorator]
def numbers(read: Callable[[torch.Tensor], Any], sizes: torch.Tensor) -> Any:
    """Return the numbers of a tensor of sizes."""
    return read(sizes)
