"""Every backend: their names, and a call that either runs on one or is refused by it as it declared.

With DEFORM_ATTN_TEST_DEVICE=cuda these calls, of tests that know nothing of it, run on that device.
"""

import os
from contextlib import contextmanager

import pytest
import torch

from deform_attn import checks, deformable_attention, explain
from deform_attn.backends import registry

DEVICE = torch.device(os.environ.get("DEFORM_ATTN_TEST_DEVICE", "cpu"))
"""Where calls by `call_on` run. The tests keep their tensors on the CPU, where gradients arrive, too."""

# On a CPU `triton` has tests of its own (tests/backends/gpu_kernels/); `native` has kernels for nothing else.
_ELSEWHERE = "triton" if DEVICE.type == "cpu" else "native"
BACKENDS = [backend.name for backend in registry.BACKENDS if backend.name != _ELSEWHERE]


def call_on(backend, entry_point, *tensors, **options):
    """Call an entry point on this backend; return None where it declares the call unsupported and refuses it.

    Whatever the device, the tensors are on the CPU, and so is the output.
    """
    tensors = [moved(tensor) for tensor in tensors]
    options = {name: moved(value) for name, value in options.items()}
    reasons = explain(*tensors, **options).reasons[backend]
    if not reasons:
        return entry_point(*tensors, backend=backend, **options).cpu()
    with pytest.raises(ValueError, match=backend):
        entry_point(*tensors, backend=backend, **options)
    return None


def moved(value):
    """Return `value`, on the device if it is a tensor; one that is there already is itself."""
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


@contextmanager
def on_one_thread():
    """Let torch use one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def kind_of_call(output, entry_point, value, shapes, *tensors, **options):
    """Return what two calls have in common that differ in the numbers of their tensors alone."""
    given = [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in (value, *tensors)]
    plain = {name: type(x) if isinstance(x, torch.Tensor) else x for name, x in sorted(options.items())}
    return entry_point, output.requires_grad, str(shapes), str(given), str(plain)


def compare_sizes_in_a_tensor(output, backend, entry_point, value, shapes, *tensors, **options):
    """Compare an output and its gradients, bit for bit, with those that the backend gives for sizes in a tensor.

    The entry points read such a tensor on the CPU; the backend gets it here as it does in a graph.
    """
    if isinstance(shapes, torch.Tensor):
        return
    fused = entry_point is deformable_attention
    names = ("num_points", "padding_mask", "offset_scale") if fused else ("num_points",)
    defaults = {"num_points": None, "padding_mask": None, "offset_scale": 0.5}
    given = [options.get(name, defaults[name]) for name in names]
    modes = options.get("interpolation", "bilinear"), options.get("padding_mode", "zeros")
    judge = checks.attention_inputs if fused else checks.sampling_inputs
    inputs = judge(moved(value), shapes, *map(moved, tensors), *map(moved, given), *modes)
    inputs = inputs._replace(spatial_shapes=torch.tensor(inputs.spatial_shapes, device=DEVICE))
    chosen = registry.get(backend)
    other = (chosen.attend(inputs) if fused else chosen.sample(inputs)).cpu()
    assert_same_bits(other, output)
    if output.requires_grad and DEVICE.type == "cpu":  # a GPU adds up gradients in the order in which they come
        leaves = [tensor for tensor in (value, *tensors) if isinstance(tensor, torch.Tensor) and tensor.requires_grad]
        pull = torch.ones_like(output)
        with on_one_thread():  # torch adds up what several points read of one pixel in the order of its threads
            both = [torch.autograd.grad(o, leaves, pull, retain_graph=True, allow_unused=True) for o in (output, other)]
        for grad, wanted in zip(*both, strict=True):
            assert_same_bits(grad, wanted)


def assert_same_bits(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)
