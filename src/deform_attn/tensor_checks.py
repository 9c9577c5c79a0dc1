"""What a tensor must be, wherever it is passed: dense, of a float dtype, and where the others are."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from deform_attn.messages import dtype_text, fail
from deform_attn.torch_names import FakeTensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INT_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor says that it is on a device, but has no numbers there."""
    return isinstance(tensor, FakeTensor)


def is_under_autocast(tensor: Tensor) -> bool:
    """Return whether torch.autocast is in force on the device of a tensor."""
    device = tensor.device.type
    if torch.compiler.is_dynamo_compiling():
        from deform_attn import untraced

        available = untraced.autocast_available(device)
    else:
        available = torch.amp.is_autocast_available(device)
    return available and torch.is_autocast_enabled(device)


def dense(name: str, tensor: Any) -> None:
    """Judge that something is a tensor, and that its numbers lie in a grid."""
    if not isinstance(tensor, Tensor):
        fail(name, "a tensor", type(tensor).__name__, "Convert it with torch.as_tensor.", TypeError)
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = str(tensor.layout).removeprefix("torch.").removeprefix("_")
        kind = "a nested tensor" if tensor.is_nested else f"a tensor of layout {layout}"
        fix = "Pad it to one shape." if tensor.is_nested else f"Use {name}.to_dense()."
        fail(name, "a dense tensor", kind, fix, TypeError)
    if type(tensor) is not Tensor and isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        fail(
            name, "a tensor with a shape", "an uninitialized one", "Run the lazy module that owns it first.", TypeError
        )


def float_tensor(name: str, tensor: Any) -> None:
    """Judge that something is a dense tensor of one of the float dtypes."""
    dense(name, tensor)
    if tensor.dtype not in FLOAT_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        fix = f"Use {name}.float()."
        if tensor.is_quantized:
            fix = f"Use {name}.dequantize()."
        elif tensor.dtype in INT_DTYPES and tensor.ndim == 1:
            fix = "If it is level_start_index, leave it out: it is not needed."
        fail(name, f"a tensor of dtype {names}", dtype_text(tensor), fix, TypeError)


def same_device(anchor: str, tensor: Tensor, name: str, other: Tensor) -> None:
    """Judge that the tensor called `name` is where the one called `anchor` is."""
    if other.device != tensor.device:
        device = str(tensor.device)
        fail(name, f"{anchor}'s device {device}", str(other.device), f"Use {name}.to({device!r}).")
    fake = isinstance(tensor, FakeTensor)
    if isinstance(other, FakeTensor) is not fake:
        one: Any = tensor if fake else other
        if not one.fake_mode.allow_non_fake_inputs:
            kinds = ("a FakeTensor", "one with numbers") if fake else ("a tensor with numbers", "a FakeTensor")
            fail(name, f"{kinds[0]}, as {anchor} is", kinds[1], "Make all of one kind (FakeTensorMode.from_tensor).")
