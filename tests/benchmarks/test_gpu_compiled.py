"""The table of compiled GPU kernels: the goals hold in all of it, and the page shows the file."""

import pytest

from benchmarks import report
from benchmarks.gpu import compiled, machine_code
from benchmarks.gpu.compiled import GPUS, MOST, MOST_BACKWARD

RESULT = report.load("gpu-compiled")
ROWS = RESULT["rows"]


def test_the_file_holds_kernels_of_the_table_and_is_of_these_sources():
    order = list(compiled.kernels())
    places = [order.index(compiled.kernel_of_row(row)) for row in ROWS]
    assert places == sorted(set(places))
    assert RESULT["kernels"] == compiled.kernels_digest(), "run python -m benchmarks.gpu.compiled"


@pytest.mark.parametrize("gpu", GPUS)
def test_no_kernel_spills(gpu):
    assert [row for row in ROWS if row["gpu"] == gpu and (row["stack"] or row["spills"])] == []


def test_forward_and_backward_passes_of_both_ops_have_few_instructions():
    rows = [row for row in ROWS if (row["gpu"], row["channels"], row["strips"]) == ("sm_90", 32, False)]
    limits = [MOST_BACKWARD if row["backward"] else MOST[row["form"]][row["dtype"]] for row in rows]
    assert len(rows) >= 6
    assert [row for row, most in zip(rows, limits, strict=True) if row["instructions"] > most] == []


def test_the_page_shows_the_committed_table():
    (block,) = compiled.BLOCK.finditer(compiled.DOCUMENT.read_text())
    assert block["body"] == compiled.body(RESULT)


def test_widths_are_those_of_the_instruction_sets():
    nvidia = {
        "LDG.E": 32, "LDG.E.128": 128, "LDG.E.64.CONSTANT": 64, "LDG.E.U16": 16, "LDG.E.U8": 8,
        "RED.E.ADD.F32.FTZ.RN.STRONG.GPU": 32, "REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU": 128,
    }  # fmt: skip
    assert {name: machine_code._bits_of_nvidia(name) for name in nvidia} == nvidia
    amd = {
        "global_load_dwordx4": 128, "buffer_load_dword": 32, "global_load_ushort": 16, "buffer_load_ubyte": 8,
        "global_atomic_add_f32": 32,
    }  # fmt: skip
    assert {name: machine_code._bits_of_amd(name) for name in amd} == amd
