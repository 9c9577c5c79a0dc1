"""The machine code of the GPU kernels, compiled for GPUs that are not here: a chosen part of the table of docs/gpu.md.

Counted are the instructions that a warp runs for one row (a query and head) and one point, at 32 channels and 16
points. tests/benchmarks/test_gpu_compiled.py holds the whole table, as it was compiled last, to the same limits.
"""

import os

import pytest

from benchmarks.gpu.compiled import CHANNELS, DTYPES, MOST, MOST_BACKWARD, QUERIES, Kernel, kernel_of_row, load
from benchmarks.gpu.machine_code import code_of
from benchmarks.gpu.no_device import active_driver, call, kernel_of
from deform_attn.backends.triton import launch
from deform_attn.backends.triton.tiles import Tile

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]


def compiled(*what, **more):
    """Return the row of a kernel; without spills, and that of the file, if that was compiled by this Triton."""
    kernel = Kernel(*what, **more)
    row = kernel.row()
    assert (row["stack"], row["spills"]) == (0, 0)
    committed = load()["rows"]  # none of another Triton
    assert all(other == row for other in committed if kernel_of_row(other) == kernel)
    return row


@pytest.mark.parametrize(
    ("gpu", "dtype"),
    [("sm_80", "float32"), ("sm_90", "float32"), ("sm_90", "float16"), ("sm_90", "bfloat16"), ("sm_100", "float32")],
)
def test_the_forward_pass_of_the_classic_op_has_few_instructions_and_wide_reads(gpu, dtype):
    row = compiled(gpu, False, "classic", dtype)
    # 16 points of four corners, each of so many bytes in each of a warp's lanes; 32 rows, 4 warps.
    assert row["reads"]["128"] == 16 * 4 * 32 * DTYPES[dtype].itemsize * 32 // (16 * 32 * 4)
    assert row["instructions"] <= (MOST["classic"][dtype] if gpu != "sm_100" else 16)


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_forward_pass_of_the_fused_op_does_not_spill_and_has_few_instructions(channels):
    row = compiled("sm_90", False, "fused", "float32", channels)
    assert channels != 32 or row["instructions"] <= MOST["fused"]["float32"]


def test_the_forward_pass_over_a_map_s_own_pixels_does_not_spill_either():
    compiled("sm_90", False, "classic", "float32", strips=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backward_pass_of_the_classic_op_has_few_instructions_and_wide_atomic_sums(dtype):
    row = compiled("sm_90", True, "classic", dtype)
    assert row["atomics"] == {"128": 16 * 4 * 32 * 4 * 32 // (16 * 32 * 4)}
    assert row["instructions"] <= MOST_BACKWARD


@pytest.mark.parametrize(("channels", "dtype"), [(16, "bfloat16"), (32, "float16"), (64, "float32")])
def test_the_backward_pass_of_the_classic_op_does_not_spill_in_any_dtype(channels, dtype):
    compiled("sm_90", True, "classic", dtype, channels)


@pytest.mark.parametrize(("channels", "dtype"), [(16, "float16"), (32, "float32"), (64, "bfloat16")])
def test_the_backward_pass_of_the_fused_op_does_not_spill_and_has_few_instructions(channels, dtype):
    row = compiled("sm_90", True, "fused", dtype, channels)
    assert channels != 32 or row["instructions"] <= MOST_BACKWARD


@pytest.mark.parametrize("form", ["classic", "fused"])
def test_the_forward_pass_compiles_for_gfx942_without_spills(form):
    compiled("gfx942", False, form, "float32")


def test_a_spill_is_seen(monkeypatch):
    active_driver("sm_90")
    monkeypatch.setattr(launch, "tile_of", lambda *_: Tile(128, 64, 1))  # 256 sums for each lane
    code = code_of(kernel_of(call("classic", [(5, 7)], D=64, P=1, queries=QUERIES)))
    assert code.stack > 0
    assert code.spills > 0
