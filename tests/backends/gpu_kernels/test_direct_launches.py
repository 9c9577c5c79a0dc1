"""Remembered calls that go straight to their launch, with a driver that has no device."""

import os

import pytest
import torch
from direct_calls import FORMS, call

from deform_attn.backends.triton import ops, toolchain
from tolerances import assert_close

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]


@FORMS
def test_a_call_is_one_launch_with_gradients_and_without(form, gpu, driver):
    tensors, op = call(form)
    for _ in range(3):
        op(*tensors)
    assert driver.launches == 3
    leaves = [tensor.requires_grad_() for tensor in tensors]
    torch.autograd.grad(op(*leaves).sum(), leaves)
    assert driver.launches == 5
    assert gpu == 4 * [("forward", True)] + [("backward", True)]


@FORMS
def test_a_profiler_sees_the_op(form, gpu, driver):
    tensors, op = call(form)
    op(*tensors)
    with torch.profiler.profile() as profile:
        op(*tensors)
    assert any(event.key.startswith("deform_attn::") for event in profile.key_averages())
    assert gpu == [("forward", True), ("forward", False)]


@FORMS
def test_a_second_derivative_and_a_deterministic_gradient_go_to_the_op(form, gpu, driver):
    tensors, op = call(form)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    output = op(*leaves)
    torch.autograd.grad(output.sum(), leaves, create_graph=True)
    assert gpu == [("forward", True)]
    torch.use_deterministic_algorithms(True)
    try:
        torch.autograd.grad(output.sum(), leaves)
    finally:
        torch.use_deterministic_algorithms(False)
    assert gpu == [("forward", True), ("backward", False)]


@FORMS
def test_a_saved_tensor_that_a_hook_made_smaller_is_judged(form, gpu, driver):
    tensors, op = call(form)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    value = tensors[0].shape
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor, lambda tensor: tensor[:, 1:] if tensor.shape == value else tensor
    ):
        output = op(*leaves)
    with pytest.raises((RuntimeError, ValueError), match="spatial_shapes"):
        torch.autograd.grad(output.sum(), leaves)
    assert gpu == [("forward", True), ("backward", False)]


@FORMS
def test_a_kernel_that_does_not_compile_leaves_the_call_to_the_op(form, gpu, driver, monkeypatch):
    tensors, op = call(form)
    op(*tensors)
    shifted = [torch.empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor) for tensor in tensors]

    def none(*_):
        raise toolchain.KernelUnavailable("no compiler")

    monkeypatch.setattr(toolchain, "compiled", none)
    try:
        with pytest.warns(UserWarning, match="no compiler"):
            output = op(*shifted)
        assert_close(output, op(*tensors, backend="reference").double(), torch.float32)
    finally:
        ops.failures.clear()
    assert gpu == [("forward", True), ("forward", False)]
