"""Remembered calls that go straight to their launch, in Triton's interpreter."""

import torch
from direct_calls import FORMS, call
from interpreted import INTERPRETED

from tolerances import assert_close

pytestmark = INTERPRETED


@FORMS
def test_output_and_gradients_are_those_of_the_reference(form, gpu):
    tensors, op = call(form)
    found = {}
    for name in ("triton", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output = op(*leaves, backend=name)
        pull = torch.linspace(-1, 1, output.numel()).view(output.shape)
        found[name] = [output.detach(), *torch.autograd.grad(output, leaves, pull)]
    assert gpu == [("forward", True), ("backward", True)]
    for actual, wanted in zip(*found.values(), strict=True):
        assert_close(actual, wanted.double(), torch.float32)


@FORMS
def test_strides_are_those_of_each_call(form, gpu):
    tensors, op = call(form)
    expected = op(*tensors, backend="reference")
    for i in range(len(tensors)):
        given = [
            torch.stack([tensor, tensor + 1], -1)[..., 0] if i == j else tensor for j, tensor in enumerate(tensors)
        ]
        assert not given[i].is_contiguous()
        assert_close(op(*given), expected.double(), torch.float32)


@FORMS
def test_what_is_negated_or_efficient_zeros_goes_to_the_op(form, gpu):
    tensors, op = call(form)
    expected = op(*tensors, backend="reference")
    op(*tensors)
    value, *others = tensors
    negated = torch._neg_view(-value)
    assert negated.is_neg()
    assert_close(op(negated, *others), expected.double(), torch.float32)
    zeros = torch._efficientzerotensor(value.shape)
    assert_close(op(zeros, *others), torch.zeros_like(expected, dtype=torch.float64), torch.float32)
    assert gpu == [("forward", True), ("forward", False), ("forward", False)]
