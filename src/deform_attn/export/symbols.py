"""Symbols: what a model's own code would make plain numbers of stays symbolic while torch.export traces it."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import SymInt, Tensor, nn
from torch.overrides import TorchFunctionMode

from deform_attn.export.free_axes import is_image
from deform_attn.export.nested import tensors


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Within the block, keep the sizes that three calls in the model's code would fix to those of its example.

    These are `len` of a tensor, `torch_int` of transformers, and `torch.as_tensor` of sizes. Python lets nobody else
    answer the first two, so their names mean something else meanwhile in the files that define the model's classes.
    The masks of images have the images' sizes: with symbols of their own, those of every map would be formulas that
    torch takes minutes to compare.
    """
    names = {type(each).__module__ for each in model.modules()}
    with ExitStack() as stack:
        for module in (vars(sys.modules[name]) for name in names if name.split(".")[0] != "torch"):
            stack.enter_context(mock.patch.dict(module, {"len": _length}))
            if "torch_int" in module:
                stack.enter_context(mock.patch.dict(module, {"torch_int": _integer(module["torch_int"])}))
        stack.enter_context(_Filled())
        hook = model.register_forward_pre_hook(lambda _, arguments: _unite(tensors(arguments)))
        stack.callback(hook.remove)
        yield


def _unite(inputs: list[Tensor]) -> None:
    """Let masks `[N, H, W]` have the sizes of the images `[N, 3, H, W]` that they have in the example."""
    for image in (each for each in inputs if is_image(each)):
        N, _, H, W = image.shape
        for mask in (each for each in inputs if each.ndim == 3 and each.shape == (N, H, W)):
            for size, same in zip(mask.shape, (N, H, W), strict=True):
                torch._check(size == same)


def _length(thing: Any) -> Any:
    return thing.shape[0] if isinstance(thing, Tensor) and thing.ndim else len(thing)


def _integer(otherwise: Any) -> Any:
    return lambda x: x if isinstance(x, SymInt) else otherwise(x)


class _Filled(TorchFunctionMode):
    """`torch.as_tensor` of symbols: filled one by one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.as_tensor and _has_symbols(args[0]):
            return _filled(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _has_symbols(data: Any) -> bool:
    return isinstance(data, SymInt) or (isinstance(data, list | tuple) and any(map(_has_symbols, data)))


def _filled(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    if isinstance(data, list | tuple):
        return torch.stack([_filled(each, dtype, device) for each in data])
    return torch.full((), data, dtype=dtype, device=device)
