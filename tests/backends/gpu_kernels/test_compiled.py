"""The machine code of the GPU kernels, compiled for GPUs that are not here: no spills, wide reads, few instructions.

Counted are the instructions that a warp runs for one row (a query and head) and one point, at 32 channels and 16
points. The rows that are done with care, of which most calls have none, are left out of the backward pass's count.
"""

import os
import re

import pytest
import torch
from no_device import active_driver, by_row_point, call, instructions, kernel_of

from deform_attn.backends.triton import launch

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
QUERIES = 40_000  # more than fill a GPU, and not those of the maps' own pixels


def wide(counts, name):
    return sum(number for key, number in counts.items() if key.startswith(name) and re.search(r"128|x4", key))


@pytest.mark.parametrize(
    ("arch", "dtype", "most"),
    [("sm_80", F32, 14.5), ("sm_90", F32, 14.5), ("sm_90", F16, 14.5), ("sm_90", BF16, 16.0), ("sm_100", F32, 16.0)],
)
def test_the_forward_pass_of_the_classic_op_has_few_instructions_and_wide_reads(arch, dtype, most):
    active_driver(arch)
    given = call("classic", dtype=dtype, queries=QUERIES)
    kernel = kernel_of(given)
    counts, used = instructions(kernel)
    assert (used["STACK"], used["LOCAL"]) == (0, 0)
    # 16 points of four corners, each of so many bytes in each of a warp's lanes; 32 rows, 4 warps.
    bytes_read = 16 * 4 * 32 * dtype.itemsize * 32
    assert wide(counts, "LDG") == bytes_read // (16 * 32 * 4)
    assert by_row_point(kernel, given) <= most


@pytest.mark.parametrize("channels", [16, 32, 64])
def test_the_forward_pass_of_the_fused_op_does_not_spill(channels):
    active_driver("sm_90")
    _, used = instructions(kernel_of(call("fused", D=channels, queries=QUERIES)))
    assert (used["STACK"], used["LOCAL"]) == (0, 0)


def test_the_forward_pass_over_a_map_s_own_pixels_does_not_spill_either():
    active_driver("sm_90")
    _, used = instructions(kernel_of(call("classic")))
    assert (used["STACK"], used["LOCAL"]) == (0, 0)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_backward_pass_of_the_classic_op_has_few_instructions_and_wide_atomic_sums(dtype, monkeypatch):
    active_driver("sm_90")
    given = call("classic", dtype=dtype, queries=QUERIES)
    monkeypatch.setattr(launch, "CAREFUL", False)
    kernel = kernel_of(given, backward=True)
    counts, _ = instructions(kernel)
    assert wide(counts, "RED") == 16 * 4 * 32 * 4 * 32 // (16 * 32 * 4)
    assert by_row_point(kernel, given, backward=True) <= 38


@pytest.mark.parametrize("form", ["classic", "fused"])
def test_what_every_row_takes_of_the_backward_pass_does_not_spill(form, monkeypatch):
    active_driver("sm_90")
    monkeypatch.setattr(launch, "CAREFUL", False)
    _, used = instructions(kernel_of(call(form, queries=QUERIES), backward=True))
    assert (used["STACK"], used["LOCAL"]) == (0, 0)


# Each compiles for seconds; float32 with 32 channels is below.
@pytest.mark.parametrize(("channels", "dtype"), [(16, F32), (16, F16), (16, BF16), (32, F16), (32, BF16), (64, F32)])
def test_the_backward_pass_of_the_classic_op_does_not_spill_in_any_dtype(channels, dtype):
    active_driver("sm_90")
    _, used = instructions(kernel_of(call("classic", dtype=dtype, D=channels, queries=QUERIES), backward=True))
    assert (used["STACK"], used["LOCAL"]) == (0, 0)


@pytest.mark.parametrize(("form", "most"), [("classic", 0), ("fused", 48)])
def test_the_rows_done_with_care_spill_few_registers(form, most):
    active_driver("sm_90")
    _, used = instructions(kernel_of(call(form, queries=QUERIES), backward=True))
    assert used["STACK"] <= most
    assert used["LOCAL"] == 0


@pytest.mark.parametrize("form", ["classic", "fused"])
def test_the_forward_pass_compiles_for_gfx942_without_spills(form):
    active_driver("gfx942")
    code = kernel_of(call(form, queries=QUERIES)).asm["amdgcn"]
    assert re.findall(r"\.vgpr_spill_count:\s+(\d+)", code) == ["0"]
