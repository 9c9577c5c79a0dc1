"""The GPU kernels on a real GPU: the table of test_kernels.py, and what only a device can show."""

import pytest
import torch
from test_kernels import ROWS, call_of, row_id

from cases import grad_output_of
from deform_attn import deformable_attention, explain
from tolerances import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a real GPU: make gpu"),
]


@pytest.fixture
def call():
    """Return the tensors of a call like a detector's encoder, and the function that makes it."""
    shapes = [(38, 51), (19, 26), (10, 13)]
    S = sum(H * W for H, W in shapes)
    sizes = (2, S, 8, 32), (2, S, 1, 2), (2, S, 8, 3, 4, 2), (2, S, 8, 12)
    tensors = [torch.randn(size, device="cuda", requires_grad=True) for size in sizes]
    return tensors, lambda value, *others: deformable_attention(value, shapes, *others)


@pytest.mark.parametrize("row", ROWS, ids=map(row_id, ROWS))
def test_output_and_gradients_are_those_of_the_reference(row):
    entry_point, case, dtype, interpolation, padding_mode, by_tensor = row
    modes = {"interpolation": interpolation, "padding_mode": padding_mode}
    tensors, mask, run = call_of(entry_point, case, dtype, by_tensor)
    wide = [tensor.double().requires_grad_() for tensor in tensors]
    pull = grad_output_of(case, dtype)
    expected = run(*wide, backend="reference", **modes)
    grads_expected = torch.autograd.grad(expected, wide, pull.double())
    actual = [tensor.cuda().requires_grad_() for tensor in tensors]
    output = run(*actual, backend="triton", mask=None if mask is None else mask.cuda(), **modes)
    assert_close(output.cpu(), expected, dtype)
    for grad, wanted in zip(torch.autograd.grad(output, actual, pull.cuda()), grads_expected, strict=True):
        assert_close(grad.cpu(), wanted, dtype)


def test_it_is_the_first_choice(call):
    tensors, _ = call
    assert explain(tensors[0], [(38, 51), (19, 26), (10, 13)], *tensors[1:]).backend == "triton"


def test_a_deterministic_backward_pass_gives_the_same_bits_each_time(call):
    tensors, op = call
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(op(*tensors).sum(), tensors) for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_nothing_waits_for_the_device(call):
    tensors, op = call
    torch.autograd.grad(op(*tensors).sum(), tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(op(*tensors).sum(), tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_call_is_captured_in_a_cuda_graph_after_one_to_warm_up(call):
    tensors, op = call
    with torch.no_grad():
        expected = op(*tensors)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = op(*tensors)
        output.zero_()
        graph.replay()
        assert torch.equal(output, expected)


def test_another_stream_and_another_device_are_those_of_the_tensors(call):
    tensors, op = call
    expected = op(*tensors)
    with torch.cuda.stream(torch.cuda.Stream()):
        other = op(*tensors)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(other, expected)
    if torch.cuda.device_count() > 1:
        assert torch.equal(op(*[tensor.to("cuda:1") for tensor in tensors]).cpu(), expected.cpu())
