"""Private names of torch, all that the library uses: a version of torch may lack one, so each is looked up here alone.

A name that is missing costs what its group says, and `explain` tells. No name is used outside its group's guard.
"""

from typing import Any

import torch
from torch.autograd import forward_ad


def _found(name: str) -> Any:
    found: Any = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    return found


class Group:
    """Names that are needed together; `missing` are those that this torch lacks."""

    def __init__(self, *names: str) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.missing = [name for name in self.names if _found(name) is None]

    @property
    def verdict(self) -> str:
        """What `explain` says of the missing ones."""
        return f"this torch has no {', '.join(self.missing)}"


_TRANSFORMS = "torch._C._are_functorch_transforms_active", "torch.autograd.forward_ad._current_level"

TRANSFORMS = Group(*_TRANSFORMS)
"""Whether torch.func or forward mode is at work. Without them only `reference` runs, which asks for neither."""

OPS = Group(
    *_TRANSFORMS,
    # An autograd.Function refuses to run below the dispatcher, where the ops' derivatives are; on one level it may.
    "torch.autograd.function._SingleLevelFunction",
    "torch._C._functorch.get_single_level_autograd_function_allowed",
    "torch._C._functorch.set_single_level_autograd_function_allowed",
    # Inside of a function's forward torch has the derivatives of the next level off.
    "torch.autograd.forward_ad._set_fwd_grad_enabled",
    # From a kernel of autograd or autocast to the kernel below it.
    "torch._C._AutoDispatchBelowAutograd",
    "torch._C._ExcludeDispatchKeyGuard",
    "torch._C.DispatchKey",
    "torch._C.DispatchKeySet",
    # To autograd again, from a kernel that lies below it (backends/triton/ops.py).
    "torch._C._SetExcludeDispatchKeyGuard",
    "torch._C.DispatchKey.AutogradFunctionality",
)
"""What stands around the ops. Without them the ops have no kernels, and grid_sample or `reference` runs."""

REMEMBERED = Group(
    *OPS.names,
    # What torch includes in each dispatch by itself: BackendSelect, and outside of inference mode ADInplaceOrView.
    "torch._C._dispatch_tls_local_include_set",
    "torch._C.DispatchKeySet",
    "torch._C.DispatchKey.BackendSelect",
    "torch._C.DispatchKey.ADInplaceOrView",
    "torch._C._is_torch_function_mode_enabled",
    "torch._C._len_torch_dispatch_stack",
    # Whether tensors look like those of an earlier call.
    "torch._C._dynamo.guards.TensorGuards",
    # Whether autograd is off below it, inside another op's kernel.
    "torch._C._dispatch_tls_is_dispatch_key_excluded",
    "torch._C.DispatchKey.AutogradCPU",
)
"""Whether anything would have to see a call. Without them every call takes the long way."""

DIRECT = Group("torch._C._autograd._profiler_enabled")
"""Whether a profiler wants to see an op. Without it a call on a GPU goes through torch's dispatcher."""

TRACING = Group("torch._C._get_tracing_state", "torch._C._set_tracing_state")
"""How torch.jit.trace is paused while a call is judged. Without them it is refused."""

are_transforms_active = _found("torch._C._are_functorch_transforms_active")
SingleLevelFunction: Any = _found("torch.autograd.function._SingleLevelFunction") or torch.autograd.Function
get_single_level_allowed = _found("torch._C._functorch.get_single_level_autograd_function_allowed")
set_single_level_allowed = _found("torch._C._functorch.set_single_level_autograd_function_allowed")
forward_mode_enabled = _found("torch.autograd.forward_ad._set_fwd_grad_enabled")
BelowAutograd = _found("torch._C._AutoDispatchBelowAutograd")
Excluding = _found("torch._C._ExcludeDispatchKeyGuard")
SettingExcluded = _found("torch._C._SetExcludeDispatchKeyGuard")
DispatchKey = _found("torch._C.DispatchKey")
KeySet = _found("torch._C.DispatchKeySet")
is_key_excluded = _found("torch._C._dispatch_tls_is_dispatch_key_excluded")
included_keys = _found("torch._C._dispatch_tls_local_include_set")
is_function_mode_on = _found("torch._C._is_torch_function_mode_enabled")
modes_of_dispatch = _found("torch._C._len_torch_dispatch_stack")
get_tracing_state = _found("torch._C._get_tracing_state")
set_tracing_state = _found("torch._C._set_tracing_state")

TensorGuards = _found("torch._C._dynamo.guards.TensorGuards")

is_profiler_on = _found("torch._C._autograd._profiler_enabled")

# Of these a missing one costs a clearer message, or the time that looking would have saved.
FakeTensor: Any = _found("torch._subclasses.fake_tensor.FakeTensor") or type(None)
is_batched = _found("torch._C._functorch.is_batchedtensor") or (lambda _tensor: False)  # by torch.vmap
# By any transform of torch.func; where torch cannot tell, none is taken for plain.
is_wrapped = _found("torch._C._functorch.is_functorch_wrapped_tensor") or (lambda _tensor: True)
is_any_autocast_on = _found("torch._C._is_any_autocast_enabled") or (lambda: True)  # or somebody has to look
_any_global_hook = _found("torch.nn.modules.module._has_any_global_hook")
_global_forward_hooks = _found("torch.nn.modules.module._global_forward_hooks")
_saved_tensors_hooks = _found("torch._C._autograd._top_saved_tensors_default_hooks")

EXPORT_LOGGER = "torch.onnx._internal.exporter._registration"
"""The logger of what torch.onnx says while it collects operators. If it has another name, those lines are shown."""


def nothing_included() -> tuple[int, ...]:
    """Return the sets of keys that torch includes in each dispatch while no mode, transform or tracer is in force."""
    if REMEMBERED.missing:
        return ()
    always = KeySet(DispatchKey.BackendSelect)
    return (always | KeySet(DispatchKey.ADInplaceOrView)).raw_repr(), always.raw_repr()


def is_forward_mode_on() -> bool:
    """Return whether a level of forward mode is open (torch counts them in a variable)."""
    return forward_ad._current_level >= 0


def hooks_on_all_modules() -> bool:
    """Return whether hooks are on all modules, which then must be called as modules."""
    return _any_global_hook is None or _any_global_hook()


def forward_hooks_on_all_modules() -> list[Any]:
    """Return these hooks."""
    return [] if _global_forward_hooks is None else list(_global_forward_hooks.values())


def hooks_see_saved_tensors() -> bool:
    """Return whether hooks, as those of activation checkpointing, see what is saved for the backward pass."""
    return _saved_tensors_hooks is None or _saved_tensors_hooks(True) is not None
