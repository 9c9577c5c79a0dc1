"""The CPU kernels and threads: torch's own and no others, and the same bits whatever their number."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from deform_attn import deformable_attention, multi_scale_deformable_attention

TASKS = Path("/proc/self/task")
SHAPES = [(31, 43), (16, 23), (5, 9)]
needs_proc = pytest.mark.skipif(not TASKS.exists(), reason="counts threads in /proc")


@pytest.fixture(autouse=True)
def _same_threads_after():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(queries=600, heads=3, channels=32, batch=1, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = sum(H * W for H, W in SHAPES)
    value = torch.randn(batch, pixels, heads, channels, generator=generator).to(dtype).requires_grad_()
    locations = (torch.rand(batch, queries, heads, 3, 4, 2, generator=generator) * 1.2 - 0.1).requires_grad_()
    weights = torch.rand(batch, queries, heads, 3, 4, generator=generator).requires_grad_()
    return value, locations, weights


def results(value, locations, weights):
    """Return output and gradients."""
    output = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend="native")
    grad_output = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype)
    return output, *torch.autograd.grad(output, (value, locations, weights), grad_output)


def fused_results(value, locations, weights):
    references = locations.detach()[:, :, 0, :, 0].clone().requires_grad_()
    offsets, logits = (locations.detach() * 9).requires_grad_(), weights.detach().flatten(3).requires_grad_()
    output = deformable_attention(value, SHAPES, references, offsets, logits, backend="native")
    return output, *torch.autograd.grad(output.square().sum(), (value, references, offsets, logits))


@pytest.mark.parametrize("run", [results, fused_results])
@pytest.mark.parametrize(
    ("queries", "heads", "batch", "dtype"),
    [
        (600, 3, 1, torch.float32),  # many queries: maps are packed
        (600, 8, 1, torch.bfloat16),
        (40, 3, 1, torch.float32),  # few: they are not
        (40, 8, 3, torch.float32),
        (3000, 1, 1, torch.float32),  # more threads than heads: parts of the pixels
        (3000, 1, 1, torch.float16),
        (500, 2, 2, torch.float64),
    ],
    ids=str,
)
def test_the_result_is_the_same_to_the_last_bit_for_any_number_of_threads(run, queries, heads, batch, dtype):
    tensors = inputs(queries, heads, 32, batch, dtype)
    torch.set_num_threads(1)
    expected = run(*tensors)
    for threads in (1, 2, 3, 5, 16):
        torch.set_num_threads(threads)
        for actual, wanted in zip(run(*tensors), expected, strict=True):
            assert torch.equal(actual, wanted)


COUNT_THREADS = """
import os, torch
from deform_attn import multi_scale_deformable_attention
torch.set_num_threads(2)
def threads(): return len(os.listdir("/proc/self/task"))
alone = threads()
torch.ones(1000, 1000).exp().sum()
beside_torch = threads()
assert beside_torch > alone, "torch started no thread"
value, locations, weights = torch.rand(1, 600, 8, 32), torch.rand(1, 3000, 8, 1, 4, 2), torch.rand(1, 3000, 8, 1, 4)
with torch.no_grad():
    multi_scale_deformable_attention(value, [(20, 30)], locations, weights, backend="native")
assert threads() == beside_torch, (alone, beside_torch, threads())
"""


@needs_proc
def test_no_thread_pool_appears_beside_that_of_torch(children):
    done = children.run(COUNT_THREADS)
    assert done.returncode == 0, done.stderr


def share_of_other_threads(tensors, threads):
    """Return how much of the processor time of some forward passes is not this thread's."""
    torch.set_num_threads(threads)
    process, this = time.process_time(), time.thread_time()
    with torch.no_grad():
        for _ in range(40):
            multi_scale_deformable_attention(tensors[0], SHAPES, *tensors[1:], backend="native")
    process, this = time.process_time() - process, time.thread_time() - this
    return 1 - this / process


def test_one_thread_means_one_thread():
    tensors = inputs(4000)
    time.sleep(0.3)  # threads of earlier calls wait busily for a while
    assert share_of_other_threads(tensors, 1) < 0.1
    assert share_of_other_threads(tensors, 2) > 0.25


def test_two_python_threads_may_call_at_once():
    cases = [inputs(700, 3, 30, seed=seed) for seed in range(4)]
    expected = [results(*case) for case in cases]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for actual, wanted in zip(pool.map(lambda case: results(*case), cases), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(actual, wanted, strict=True))
