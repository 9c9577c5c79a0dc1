"""torch.autocast and the two ops: value takes autocast's dtype, coordinates and weights keep theirs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deform_attn import torch_names
from deform_attn.torch_ops.schema import LIBRARY, OPS

_DEVICES = ("CPU", "CUDA", "XPU", "MPS")


def cast(value: Tensor) -> Tensor:
    """Return `value` in the dtype that autocast asks for on its device; float64 stays, as in all of torch's ops."""
    device = value.device.type
    if value.dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
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
