"""The measured accuracy: what is measured, that it sees an error, and that the page says what was measured."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import accuracy, report
from deform_attn import explain, timing

TINY = replace(timing.DEC300, spatial_shapes=((9, 13), (5, 7), (3, 4), (2, 3)), queries=21, heads=3, channels=10)
CALL = torch.zeros(1, 1, 1, 1), [(1, 1)], torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1)
AVAILABLE = [name for name, reasons in explain(*CALL).reasons.items() if not reasons]
# Of the output and the gradient of value: float32 sums on maps ten pixels wide, or one rounding of the result.
BOUNDS = {"float64": 1e-14, "float32": 1e-5, "bfloat16": 2**-8, "float16": 2**-11}


def test_every_available_backend_is_measured_in_every_dtype_with_both_forms_and_every_gradient():
    errors = accuracy.measure(TINY)
    assert list(errors) == ["classic", "fused"]
    for form, names in (("classic", ["value", "locations", "weights"]), ("fused", ["value", "offsets", "logits"])):
        assert list(errors[form]) == list(BOUNDS)
        for dtype, rows in errors[form].items():
            assert list(rows) == AVAILABLE
            for row in rows.values():
                assert list(row) == ["output", *(f"grad {name}" for name in names)]
                first, second, *others = row.values()
                assert max(first, second) <= BOUNDS[dtype] + BOUNDS["float32"] * (dtype != "float64")
                # The rounding of value does not count, and these are float32 whatever its dtype.
                assert max(others) <= min(BOUNDS[dtype], BOUNDS["float32"])


def test_rounding_to_half_precision_is_seen_where_it_happens():
    rows = accuracy.measure(TINY, [torch.bfloat16])["classic"]["bfloat16"]
    for row in rows.values():
        assert min(row["output"], row["grad value"]) > 2**-11


@pytest.mark.parametrize("wrong", ["output", "grad"])
def test_a_wrong_result_has_a_large_error(wrong, monkeypatch):
    op = TINY.op()

    def off(value, locations, weights):
        output = op(value, locations, weights)
        extra = 0.1 * locations.flatten(2).sum(-1, keepdim=True)
        return output + (extra if wrong == "output" else extra - extra.detach())

    monkeypatch.setattr(timing.Case, "op", lambda case: off)
    for row in accuracy.measure(TINY, [torch.float32])["classic"]["float32"].values():
        assert row["grad locations"] > 1e-3
        assert (row["output"] > 1e-3) == (wrong == "output")


def test_a_nan_is_an_infinite_error():
    assert accuracy._error(torch.tensor([1.0, float("nan")]), torch.ones(2, dtype=torch.float64)) == float("inf")


def test_the_page_shows_the_committed_result():
    result = report.load("accuracy")
    assert {"case", "machine", "threads", "versions", "commit", "measured", "errors"} <= set(result)
    assert set(result["errors"]["classic"]["float32"]) >= {"native", "grid_sample", "reference"}
    (block,) = accuracy.BLOCK.finditer(accuracy.DOCUMENT.read_text())
    assert block["body"] == accuracy.body(result)


def test_a_run_writes_a_result_and_markdown_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(accuracy, "CASE", TINY)
    monkeypatch.setattr(accuracy, "DTYPES", (torch.float32,))
    monkeypatch.setattr(accuracy, "DOCUMENT", tmp_path / "page.md")
    accuracy.DOCUMENT.write_text("before\n<!-- accuracy -->\nold\n<!-- end -->\nafter\n")
    before = torch.get_num_threads()
    try:
        accuracy.main([])
    finally:
        torch.set_num_threads(before)
    result = json.loads((tmp_path / "accuracy.json").read_text())
    assert result["case"]["queries"] == 21
    assert accuracy.tables(result) in capsys.readouterr().out
    accuracy.main(["--markdown"])
    assert accuracy.DOCUMENT.read_text() == (f"before\n<!-- accuracy -->\n{accuracy.body(result)}<!-- end -->\nafter\n")
    assert "| float32 | `reference` | " in accuracy.body(result)
