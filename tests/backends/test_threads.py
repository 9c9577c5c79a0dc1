"""Calls from several threads at once, which share the tables of remembered calls, with and without a global lock."""

import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cases import CASES, inputs_of, named
from deform_attn import deformable_attention, multi_scale_deformable_attention
from deform_attn.backends import remembered
from deform_attn.backends.kinds import Kinds

THREADS = 8
FORMS = ["fused", "classic"]


@pytest.fixture
def many_changes():
    """Let Python go from thread to thread as often as it can, where a global lock keeps the others waiting."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def crowded(monkeypatch):
    """Start with an empty table that is full after three keys, so that some threads empty it while others read."""
    kinds = Kinds()
    kinds.most = 3
    monkeypatch.setattr(remembered, "_calls", kinds)


def output_and_gradients(form, case, dtype, factor=1.0):
    inputs = inputs_of(case, dtype)
    if form == "fused":
        tensors, entry_point, options = inputs.fused_tensors, deformable_attention, inputs.fused_options
    else:
        tensors, entry_point, options = inputs.classic_tensors, multi_scale_deformable_attention, inputs.classic_options
    leaves = [(tensor * factor).requires_grad_() for tensor in tensors]
    output = entry_point(leaves[0], inputs.spatial_shapes, *leaves[1:], **options)
    return [output.detach(), *torch.autograd.grad(output.float().sin().sum(), leaves)]


def at_once(work):
    """Run `work(number)` in all threads, which start together; raise the error of one that fails."""
    barrier = threading.Barrier(THREADS)

    def started(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(started, range(THREADS)))


def same_bits(actual, expected):
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_one_kind_with_other_numbers_in_each_thread(form, many_changes):
    factors = [1 / (1 + number) for number in range(THREADS)]
    call = form, named("encoder"), torch.float32
    expected = [output_and_gradients(*call, factor) for factor in factors]

    def work(number):
        return all(same_bits(output_and_gradients(*call, factors[number]), expected[number]) for _ in range(20))

    assert all(at_once(work))


def test_all_kinds_at_once_in_any_order(many_changes):
    calls = [(form, case, dtype) for form in FORMS for case in CASES for dtype in (torch.float32, torch.bfloat16)]
    expected = [output_and_gradients(*call) for call in calls]
    remembered._calls.clear()

    def work(number):
        order = random.Random(number).sample(range(len(calls)), len(calls))
        return [calls[i] for i in order if not same_bits(output_and_gradients(*calls[i]), expected[i])]

    assert [wrong for found in at_once(work) for wrong in found] == []
    assert 0 < len(remembered._calls) <= 3 + THREADS  # all threads may find room for one more, then each adds it


FIRST = """
import threading
from concurrent.futures import ThreadPoolExecutor
import torch
barrier = threading.Barrier(8)
value, locations = torch.arange(6.0).reshape(1, 6, 1, 1), torch.full((1, 1, 1, 1, 1, 2), 0.5)
def work(_):
    barrier.wait()
    from deform_attn import multi_scale_deformable_attention
    return multi_scale_deformable_attention(value, [(2, 3)], locations, torch.ones(1, 1, 1, 1, 1)).item()
with ThreadPoolExecutor(8) as pool:
    print(set(pool.map(work, range(8))))
"""


def test_the_first_import_and_call_in_all_threads_of_a_process():
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "{2.5}\n"), done.stderr
