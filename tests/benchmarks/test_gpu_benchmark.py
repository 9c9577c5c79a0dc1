"""The benchmark of the GPU kernels, run where there is no GPU, on a call that is tiny."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.cases import TINY
from benchmarks.measure import DisagreementError


def test_a_run_adds_rows_with_the_command_that_repeats_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "CASES", {"tiny": TINY})
    monkeypatch.setattr(torch, "compile", lambda op: op)
    out = tmp_path / "gpu.json"
    for dtype in ("float32", "bfloat16"):
        gpu.main(["--cases", "tiny", "--dtypes", dtype, "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["competitor"], row["pass"]) for row in rows if row["dtype"] == "bfloat16"] == [
        (name, what) for name in ("ours", "ours fused") for what in gpu.PASSES
    ]
    assert {row["competitor"] for row in rows} == {"ours", "ours fused", "grid_sample", "grid_sample compiled"}
    assert all(row["milliseconds"] > 0 and "--cases tiny" in row["command"] for row in rows)
    assert "competitor=ours" in capsys.readouterr().out


def test_a_wrong_output_is_not_timed():
    tensors = TINY.inputs()[:3]
    with pytest.raises(DisagreementError, match="tiny"):
        gpu.judge(TINY, lambda *given: 1.01 * TINY.op()(*given), tensors)
