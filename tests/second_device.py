"""A second device on a machine without one: torch's "meta", whose tensors have numbers here, kept in CPU tensors.

Inside `second_device()` a tensor that is made on "meta", or moved there, is an `Elsewhere`. As on a GPU, an operation
takes tensors of one device; only a number in a tensor without dimensions may come from the CPU. Anything else is an
error that names the operation. So what is not moved, or is made without a device, is found where it meets the rest.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")


class Elsewhere(Tensor):
    """A tensor on the second device; `here` has its numbers."""

    here: Tensor
    is_meta = False  # it has numbers

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        made.here = here
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.here})"

    def tolist(self) -> Any:
        return self.here.tolist()  # torch's own refuses subclasses

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        stay = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
        devices = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        there = len(stay) < len(tensors)
        if there and not devices and function is not torch.ops.aten.copy_.default and any(one.dim() for one in stay):
            raise RuntimeError(f"{function}: tensors on two devices")
        if function is torch.ops.aten.copy_.default:
            there = isinstance(args[0], Elsewhere)
        if devices:
            there = devices[0].type == DEVICE.type
        result = function(*tree_map(_here, args), **tree_map(_here, kwargs))
        if isinstance(result, Tensor) and args and result is _here(args[0]):
            return args[0]  # it was changed in place
        return tree_map(lambda one: Elsewhere(one) if there and isinstance(one, Tensor) else one, result)


class _SecondDevice(TorchDispatchMode):
    """Sees operations that have no tensor of the second device yet, and may make one."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Elsewhere.__torch_dispatch__(function, types, args, kwargs)


class _FromNumbers(TorchFunctionMode):
    """Makes tensors from Python's numbers on the CPU and moves them; torch itself would leave the numbers out."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is Tensor.new_tensor:
            like, *args = args
            function, kwargs = torch.tensor, {"dtype": like.dtype, "device": like.device} | kwargs
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Give the second device; only within the block it is one, and torch and accelerate take it for the accelerator."""
    with ExitStack() as stack:
        for target, name, value in (
            (torch.accelerator, "current_accelerator", lambda check_available=False: DEVICE),
            (torch.accelerator, "device_count", lambda: 1),
            (Accelerator, "device", DEVICE),
            (sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        # fork_rng looks up the accelerator's module, and takes nothing from it where it is given no device.
        stack.enter_context(mock.patch.object(torch, DEVICE.type, SimpleNamespace(), create=True))
        stack.enter_context(_SecondDevice())
        stack.enter_context(_FromNumbers())
        yield DEVICE


def _here(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.here if isinstance(value, Elsewhere) else value
