"""Symbols: what a model's own code would make plain numbers of stays symbolic while torch.export traces it."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import SymFloat, SymInt, Tensor, nn
from torch.overrides import TorchFunctionMode

from deform_attn.export.free_axes import is_image
from deform_attn.export.nested import tensors


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Within the block, keep the sizes that some calls in the model's code would fix to those of its example.

    These are `torch.as_tensor` and `torch.linspace` of sizes, `len` of a tensor, and `torch_int` of transformers. No
    mode of torch can answer the last two, so their names mean something else meanwhile in the files that define the
    model's classes. The masks of images have the images' sizes: with symbols of their own, those of every map would be
    formulas that torch takes minutes to compare.
    """
    names = {type(each).__module__ for each in model.modules()}
    with ExitStack() as stack:
        for module in (sys.modules[name] for name in names if name.split(".")[0] != "torch"):
            stack.enter_context(_meaning(module, "len", _length))
            if (otherwise := getattr(module, "torch_int", None)) is not None:
                stack.enter_context(_meaning(module, "torch_int", _integer(otherwise)))
        stack.enter_context(_Symbolic())
        hook = model.register_forward_pre_hook(lambda _, arguments: _unite(tensors(arguments)))
        stack.callback(hook.remove)
        yield


@contextmanager
def _meaning(module: ModuleType, name: str, instead: Any) -> Iterator[None]:
    """Within the block, let a name mean something else in the file of a module."""
    names = vars(module)
    is_there, before = name in names, names.get(name)
    names[name] = instead
    try:
        yield
    finally:
        if is_there:
            names[name] = before
        else:
            del names[name]


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


class _Symbolic(TorchFunctionMode):
    """Functions of torch that make constants of symbols among their arguments, by others that do not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        instead: Any = {torch.as_tensor: _filled, torch.linspace: _spaced}.get(func)
        if instead is not None and _has_symbols(args):
            return instead(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _has_symbols(data: Any) -> bool:
    if isinstance(data, list | tuple):
        return any(map(_has_symbols, data))
    return isinstance(data, SymInt | SymFloat)


def _filled(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    if isinstance(data, list | tuple):
        return torch.stack([_filled(each, dtype, device) for each in data])
    return torch.full((), data, dtype=dtype, device=device)


def _spaced(start: Any, end: Any, steps: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    dtype = dtype or torch.get_default_dtype()
    # Whole numbers times the span first: where a step is 1, as between pixels, each place is exact.
    places = torch.arange(steps, dtype=dtype, device=device) * (end - start)
    return places / torch.full((), steps - 1, dtype=dtype, device=device).clamp(min=1) + start
