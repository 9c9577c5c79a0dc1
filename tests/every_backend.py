"""Every backend: their names, and a call that either runs on one or is refused by it as it declared."""

from contextlib import contextmanager

import pytest
import torch

from deform_attn import checks, deformable_attention, explain
from deform_attn.backends import registry

# `triton` has tests of its own (tests/backends/gpu_kernels/): it needs a GPU, or an interpreter that is too slow.
BACKENDS = [backend.name for backend in registry.BACKENDS if backend.name != "triton"]


def call_on(backend, entry_point, *tensors, **options):
    """Call an entry point on this backend; return None where it declares the call unsupported and refuses it."""
    reasons = explain(*tensors, **options).reasons[backend]
    if not reasons:
        return entry_point(*tensors, backend=backend, **options)
    with pytest.raises(ValueError, match=backend):
        entry_point(*tensors, backend=backend, **options)
    return None


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
    inputs = judge(value, shapes, *tensors, *given, *modes)
    inputs = inputs._replace(spatial_shapes=torch.tensor(inputs.spatial_shapes))
    chosen = registry.get(backend)
    other = chosen.attend(inputs) if fused else chosen.sample(inputs)
    assert_same_bits(other, output)
    if output.requires_grad:
        leaves = [tensor for tensor in (value, *tensors) if isinstance(tensor, torch.Tensor) and tensor.requires_grad]
        pull = torch.ones_like(output)
        with on_one_thread():  # torch adds up what several points read of one pixel in the order of its threads
            both = [torch.autograd.grad(o, leaves, pull, retain_graph=True, allow_unused=True) for o in (output, other)]
        for grad, wanted in zip(*both, strict=True):
            assert_same_bits(grad, wanted)


def assert_same_bits(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)
