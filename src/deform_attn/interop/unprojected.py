"""Unprojected: the value of modules that project neither it nor the output, such as D-FINE's."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from deform_attn.tensor_checks import is_under_autocast


def unprojected(features: Tensor, logits: Tensor, discrete: bool) -> tuple[Tensor, AbstractContextManager[Any]]:
    """Return value for a module that projects neither it nor the output, and the context in which to read it.

    What such a module adds up is what others see. Under autocast its dtype is that of the stock computation, in which
    grid_sample gives float32, reads by index keep the dtype of value, and softmax has rules that differ by device.
    """
    if not is_under_autocast(features):
        return features, nullcontext()
    dtype = torch.promote_types(features.dtype, logits.new_empty(0).softmax(0).dtype)
    if not discrete:
        dtype = torch.promote_types(dtype, torch.float32)
    return features.to(dtype), torch.autocast(features.device.type, enabled=False)
