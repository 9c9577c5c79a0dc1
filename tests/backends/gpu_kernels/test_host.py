"""What the host does for a launch: compilations and cached launches, with a driver that has no device."""

import os

import pytest
import torch

from benchmarks.gpu.no_device import MAPS, call, forget
from deform_attn.backends.triton import compiled, ops, prepared, toolchain
from deform_attn.backends.triton import launch as launching
from deform_attn.torch_ops import schema

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]


def sizes(count):
    return [[(H + 2 * i + 1, W + 3 * i) for H, W in MAPS] for i in range(count)]


def test_twenty_sizes_of_images_and_batches_are_one_kernel(driver):
    kernel = launching._kernels()[0]
    kernel.device_caches.pop("sm_90", None)
    for i, maps in enumerate(sizes(20)):
        forget()  # so that Triton itself is asked each time
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


def test_addresses_that_are_not_aligned_now_and_then_get_the_kernel_for_them_each_time(driver, monkeypatch):
    launched = []
    launch = compiled.Compiled.launch

    def seen(self, addresses):
        launched.append((self._kernel, [address % 16 for address in addresses if address is not None]))
        launch(self, addresses)

    monkeypatch.setattr(compiled.Compiled, "launch", seen)
    value, points, weights, rows = arguments("classic")[1]
    shifted = torch.empty(value.numel() + 1)[1:].view(value.shape)
    twin = ops.forward_of(schema.SAMPLE, twin=True)
    for given in (value, shifted, value, shifted):
        twin(given, points, weights, rows)
    kernels, places = zip(*launched, strict=True)
    assert kernels[0] is kernels[2] is not kernels[1] is kernels[3]
    assert kernels[1] is not kernels[0]
    assert [any(place) for place in places] == [False, True, False, True]


def test_a_dtype_that_changes_gets_a_launch_of_its_own(driver):
    value, points, weights, rows = arguments("classic")[1]
    twin = ops.forward_of(schema.SAMPLE, twin=True)
    for dtype in (torch.float32, torch.float16, torch.float32):
        assert twin(value.to(dtype), points, weights, rows).dtype == dtype
    assert len(launching._compiled) == 2


def test_a_tensor_on_another_device_than_value_is_refused(driver):
    op, (value, points, weights, rows) = arguments("classic")
    args = schema.arguments_of_twin(op, (value, points, weights, rows))
    ops.forward_of(op)(*args)
    args[2] = args[2].to("meta")
    with pytest.raises(ValueError, match="sampling_locations: expected a tensor on cpu, as value, got meta"):
        ops.forward_of(op)(*args)
    assert driver.launches == 1


def test_launches_of_sizes_that_keep_changing_are_forgotten(driver, monkeypatch):
    monkeypatch.setattr(prepared._launches, "most", 4)
    for maps in sizes(9):
        prepared.launch_of_call(call("classic", maps))
    assert 0 < len(prepared._launches) <= 4


def arguments(entry_point):
    """Return an op, and arguments of its twin."""
    given = call(entry_point, queries=300)
    P = given.counts[0]
    rows = [0, 0]
    for (H, W), count in zip(MAPS, given.counts, strict=True):
        rows += (H, W, count)
    points = given.points.unflatten(3, (len(MAPS), P))
    if entry_point == "classic":
        return schema.SAMPLE, [given.value, points, given.weights.unflatten(3, (len(MAPS), P)), rows]
    return schema.ATTEND, [given.value, given.references, points, given.weights, given.mask, given.scale, rows]


@pytest.mark.parametrize("entry_point", ["classic", "fused"])
def test_a_twin_is_prepared_once_and_launches_what_its_op_launches(driver, entry_point, monkeypatch):
    laid_out = []
    call_of = prepared.call_of
    monkeypatch.setattr(prepared, "call_of", lambda *args: laid_out.append(args) or call_of(*args))
    op, args = arguments(entry_point)
    N, _, M, D = args[0].shape
    twin = ops.forward_of(op, twin=True)
    for i in range(3):
        assert twin(*args).shape == (N, 300, M * D)
        assert driver.launches == i + 1
    assert len(laid_out) == 1
    ops.forward_of(op)(*schema.arguments_of_twin(op, args))
    assert (len(laid_out), driver.launches) == (2, 4)
    assert len(launching._compiled) == 1
    places = 1 if entry_point == "classic" else 2
    args[places] = torch.empty(*args[places].shape[:-1], 4)[..., ::2]  # the kernels read a copy of these
    for _ in range(2):
        twin(*args)
    assert (len(laid_out), driver.launches) == (4, 6)


def test_a_backward_op_is_prepared_once(driver, monkeypatch):
    laid_out = []
    call_of = prepared.call_of
    monkeypatch.setattr(prepared, "call_of", lambda *args: laid_out.append(args) or call_of(*args))
    op, args = arguments("fused")
    args = schema.arguments_of_twin(op, args)
    pull = torch.empty(1, 300, 256)
    for wanted in ([True] * 4, [False, False, True, False], [True] * 4):
        grads = ops.backward_of(op)(pull, *args, wanted)
        assert [grad.numel() > 0 for grad in grads] == wanted
    assert (len(laid_out), driver.launches) == (1, 3)
    assert len(launching._compiled) == 2


@pytest.mark.parametrize("is_known", [True, False])
def test_a_launch_is_what_triton_itself_hands_to_the_driver(driver, is_known, monkeypatch):
    seen = []
    monkeypatch.setattr(driver, "launched", seen.append)
    monkeypatch.setattr(toolchain, "knows_launcher", lambda: is_known)
    op, args = arguments("fused")
    ops.forward_of(op, twin=True)(*args)
    (launch,) = prepared._launches.values()
    (ready,) = launch._ready.values()
    addresses = [arg.data_ptr() for arg in args if isinstance(arg, torch.Tensor)]
    ready._kernel[ready._grid](*addresses, *ready._others)
    ours, tritons = seen
    assert ours[:6] == tritons[:6]  # grid, stream, function, metadata
    assert ours[-len(ready._others) :] == tritons[-len(ready._others) :]
    assert len([arg for arg in ours if arg in addresses]) == 4


def test_a_profiler_s_hooks_are_called(driver, monkeypatch):
    from triton import knobs

    op, args = arguments("classic")
    twin = ops.forward_of(op, twin=True)
    twin(*args)
    seen = []

    def launched(args):
        metadata, enter, leave = args[6:9]
        enter(metadata)
        leave(metadata)

    monkeypatch.setattr(driver, "launched", launched)
    knobs.runtime.launch_enter_hook.add(lambda metadata: seen.append(metadata.get()["name"]))
    try:
        twin(*args)
    finally:
        knobs.runtime.launch_enter_hook.calls.clear()
    assert seen == ["forward_kernel"]
