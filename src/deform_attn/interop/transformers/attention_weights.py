"""Attention weights: whether somebody wants those that a module is about to return."""

import inspect
import sys
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from deform_attn import torch_names
from deform_attn.interop.transformers.rules import OUTPUT_ATTENTIONS
from deform_attn.recording import RecordingHook

# What the part of the model that runs was told; None: none that is told runs.
_told: ContextVar[bool | None] = ContextVar("deform_attn_told", default=None)


def weights_asked_for(module: nn.Module, output_attentions: bool | None, tellers: tuple[str, ...]) -> bool:
    """Return whether somebody will look at the attention weights that `module` is about to return.

    That is a caller that says so, or a forward hook. The hooks by which transformers captures outputs stay on a model
    for good once they were needed; these ask only while a capture of attentions is on. Where one of the classes
    `tellers` of the model around it is told instead of the module, only that can say no. A compiler drops what nobody
    uses, so that under torch.compile the answer is yes.
    """
    if output_attentions or torch.compiler.is_compiling():
        return True
    kind: Any = type(module)
    if tellers and _told.get() is not False and _is_any_told(kind, tellers):
        return True
    hooks = (*module._forward_hooks.values(), *torch_names.forward_hooks_on_all_modules())
    return any(_asks(hook) for hook in hooks)


@cache
def _is_any_told(kind: type[nn.Module], tellers: tuple[str, ...]) -> bool:
    # The tellers are in the module of the stock class, which a class of a user's own may have among its bases.
    parts = [getattr(sys.modules.get(cls.__module__), name, None) for cls in kind.__mro__ for name in tellers]
    return any(OUTPUT_ATTENTIONS in inspect.signature(part.forward).parameters for part in parts if part is not None)


def telling_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the stock forward of a part of a model that is told whether attention weights are wanted, and tell it on."""
    forward = type(module).forward
    if torch.compiler.is_compiling():
        return forward(module, *args, **kwargs)
    wanted = inspect.signature(forward).bind(module, *args, **kwargs).arguments.get(OUTPUT_ATTENTIONS)
    token = _told.set(bool(module.config.output_attentions if wanted is None else wanted))
    try:
        return forward(module, *args, **kwargs)
    finally:
        _told.reset(token)


def can_tell(module: nn.Module) -> bool:
    """Return whether `telling_forward` can stand in for the forward of the module's class."""
    return hasattr(module, "config") and OUTPUT_ATTENTIONS in inspect.signature(type(module).forward).parameters


def attention_weights(logits: Tensor) -> Tensor:
    """Return the softmax of `logits [N, Q, M, T]`."""
    if torch.compiler.is_compiling() or not torch_names.hooks_see_saved_tensors():
        return logits.softmax(-1)
    # Activation checkpointing counts what is saved, and runs a second time when the capture that asked is over. What
    # is saved under hooks of our own it does not see.
    with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
        return logits.softmax(-1)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _asks(hook: Any) -> bool:
    if isinstance(hook, RecordingHook):  # it computes them itself
        return False
    hook = getattr(hook, "func", hook)
    if getattr(hook, "__module__", None) != "transformers.utils.output_capturing":
        return True
    captured = hook.__globals__["_active_collector"].get()  # None, or a list for each output that is captured
    return captured is not None and any(name.endswith("attentions") for name in captured)
