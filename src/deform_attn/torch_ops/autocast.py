"""torch.autocast and the two ops: value takes autocast's dtype, coordinates and weights keep theirs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deform_attn import torch_names
from deform_attn.torch_ops.schema import LIBRARY, OPS

_DEVICES = ("CPU", "CUDA", "XPU", "MPS")
_DTYPES = torch.float32, torch.bfloat16, torch.float16

# Looking a name up in torch takes as long as such a question does.
_is_available, _is_enabled = torch.amp.is_autocast_available, torch.is_autocast_enabled
_is_any_on, _is_compiling = torch_names.is_any_autocast_on, torch.compiler.is_dynamo_compiling


def cast(value: Any) -> Any:
    """Return `value` in the dtype that autocast asks for on its device; float64 stays, as in all of torch's ops."""
    if not (_is_compiling() or _is_any_on()):
        return value
    if isinstance(value, Tensor) and value.dtype in _DTYPES:
        device = "cpu" if value.is_cpu else value.device.type  # a device that is asked for its type takes its time
        if (device == "cpu" or _is_available(device)) and _is_enabled(device):
            return value.to(torch.get_autocast_dtype(device))
    return value


def _kernel(op: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    keys = torch_names.KeySet(getattr(torch_names.DispatchKey, f"Autocast{device}"))

    def call(value: Tensor, *rest: Any) -> Tensor:
        value = cast(value)
        with torch_names.Excluding(keys):
            return op(value, *rest)

    return call


for _op in () if torch_names.OPS.missing else OPS:
    for _device in _DEVICES:
        LIBRARY.impl(_op.name, _kernel(_op.forward, _device), f"Autocast{_device}")
