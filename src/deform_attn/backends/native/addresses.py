"""Where the numbers of a tensor lie: the one way by which an address reaches the CPU kernels.

The kernels trust what they are given, and torch has many tensors whose numbers do not lie where their sizes and strides
say: zeros without memory, negative views, wrappers of a transform, a storage that was freed or shrunk under its views.
"""

import torch
from torch import Tensor

from deform_attn.messages import fail
from deform_attn.torch_names import dispatch_keys

# How torch dispatches on a dense tensor in this machine's memory. Other devices and layouts, negative and conjugate
# views, zeros without memory, fake tensors and those of torch.func have keys of their own.
PLAIN_KEYS: tuple[int, ...] = ()
if dispatch_keys is not None:
    PLAIN_KEYS = (dispatch_keys(torch.empty(0)).raw_repr(),)
    with torch.inference_mode():
        PLAIN_KEYS += (dispatch_keys(torch.empty(0)).raw_repr(),)


def is_plain(tensor: Tensor) -> bool:
    """Return whether torch takes this for a dense tensor in this machine's memory."""
    return dispatch_keys(tensor).raw_repr() in PLAIN_KEYS


def extent(tensor: Tensor) -> int:
    """Return how many bytes lie between the first number of a dense tensor and the end of its last one."""
    if tensor.is_contiguous():
        return tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize


def address(name: str, tensor: Tensor) -> int:
    """Return the address of the first number of the tensor called `name`, or 1 where it has no numbers.

    Raises:
        ValueError: the numbers do not lie in this machine's memory as sizes and strides say.
    """
    if not is_plain(tensor):
        keys = f"one that torch dispatches by {dispatch_keys(tensor)}"
        fail(name, "a dense tensor in the CPU's memory", keys, f"Use {name}.clone() outside of modes and wrappers.")
    needed = extent(tensor)
    # Where there are no numbers, a null pointer would say that the tensor is not there.
    return plain_address(name, tensor, needed) if needed else 1


def plain_address(name: str, tensor: Tensor, needed: int) -> int:
    """Return the address of the first number of a plain tensor, whose numbers take up `needed` > 0 bytes.

    Raises:
        ValueError: the tensor's storage does not hold them.
    """
    at = tensor.data_ptr()
    held = tensor.untyped_storage().nbytes()
    if offset := tensor.storage_offset():
        held -= int(offset) * tensor.itemsize
    if not at or held < needed:
        got = f"a storage of {max(held, 0)} bytes" if at else "one without memory"
        fix = "Allocate it again: its storage was freed or resized."
        fail(name, f"a tensor of {needed} bytes in memory", got, fix)
    return at
