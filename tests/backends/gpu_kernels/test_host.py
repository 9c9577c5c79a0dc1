"""What the host does for a launch: compilations and cached launches, with a driver that has no device."""

import os

import pytest
import torch
from no_device import MAPS, active_driver, call

from deform_attn.backends.triton import launch as launching
from deform_attn.backends.triton import ops, toolchain, twins
from deform_attn.torch_ops import schema

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]


@pytest.fixture
def driver():
    launching._compiled.clear()
    launching._launches.clear()
    yield active_driver("sm_90")
    launching._compiled.clear()
    launching._launches.clear()


def sizes(count):
    return [[(H + 2 * i + 1, W + 3 * i) for H, W in MAPS] for i in range(count)]


def test_twenty_sizes_of_images_and_batches_are_one_kernel(driver):
    kernel = launching._kernels()[0]
    kernel.device_caches.pop("sm_90", None)
    for i, maps in enumerate(sizes(20)):
        launching._compiled.clear()  # so that Triton itself is asked each time
        ops.run_forward(call("fused", maps, N=1 + i % 3))
    assert driver.launches == 20
    assert len(kernel.device_caches["sm_90"][0]) == 1


def test_a_kernel_is_asked_of_triton_once(driver, monkeypatch):
    asked = []
    compiled = toolchain.compiled
    monkeypatch.setattr(toolchain, "compiled", lambda *args: asked.append(args) or compiled(*args))
    for maps in sizes(5):
        ops.run_forward(call("classic", maps))
    assert (len(asked), driver.launches) == (1, 5)


def test_addresses_that_are_not_aligned_get_a_kernel_of_their_own(driver):
    given = call("classic", queries=300)
    ops.run_forward(given)
    shifted = torch.empty(given.value.numel() + 1)[1:].view(given.value.shape)
    ops.run_forward(given._replace(value=shifted))
    assert len(launching._compiled) == 2


def test_launches_of_sizes_that_keep_changing_are_forgotten(driver, monkeypatch):
    monkeypatch.setattr(launching, "_MOST", 4)
    for maps in sizes(9):
        launching.launch_of(call("classic", maps))
    assert 0 < len(launching._launches) <= 4


@pytest.mark.parametrize("entry_point", ["classic", "fused"])
def test_a_twin_is_prepared_once_and_launches_what_its_op_launches(driver, entry_point, monkeypatch):
    monkeypatch.setattr(twins, "_launches", {})
    op = schema.SAMPLE if entry_point == "classic" else schema.ATTEND
    prepared = []
    prepare = twins._prepared
    monkeypatch.setattr(twins, "_prepared", lambda *args: prepared.append(args) or prepare(*args))
    given = call(entry_point, queries=300)
    N, _, M, _ = given.value.shape
    P = given.counts[0]
    grouped = given.points.unflatten(3, (len(MAPS), P)), given.weights
    if entry_point == "classic":
        grouped = grouped[0], given.weights.unflatten(3, (len(MAPS), P))
        tensors, options = (given.value, *grouped), []
    else:
        tensors, options = (given.value, given.references, *grouped, given.mask), [given.scale]
    rows = [0, 0]
    for (H, W), count in zip(MAPS, given.counts, strict=True):
        rows += (H, W, count)
    judged = twins.twin_of(op)
    for i in range(3):
        output = judged(*tensors, *options, rows)
        assert output.shape == (N, 300, M * given.value.shape[3])
        assert driver.launches == i + 1
    assert len(prepared) == 1
    assert len(launching._compiled) == 1
    apart = given.points.new_empty(*given.points.shape[:-1], 4)[..., ::2]  # the kernels read a copy of these
    tensors = [apart if tensor is grouped[0] else tensor for tensor in tensors]
    tensors = [given.weights if entry_point == "classic" and tensor is grouped[1] else tensor for tensor in tensors]
    judged(*tensors, *options, rows)
    assert list(twins._launches.values())[-1] is None
    assert driver.launches == 4
