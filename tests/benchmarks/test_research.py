"""The benchmark of research code: a model of the original's form, judged and timed on three sides, and its table."""

import json
from dataclasses import replace

import pytest
import torch
from test_end_to_end import SMALL

from benchmarks import end_to_end, report, research, run
from benchmarks.end_to_end import compare_patched
from benchmarks.measure import DisagreementError
from benchmarks.research import RESEARCH

CASE = replace(RESEARCH["original"], build=lambda: research.original(**SMALL), pixels=(128, 192))


def test_the_original_is_judged_and_timed_with_its_core_with_the_stand_in_and_patched():
    result = compare_patched(CASE, seconds=0, say=lambda line: None)
    assert result["attentions"] == 3
    assert result["share"] > end_to_end.MARGIN * end_to_end.TOLERANCES["inference"]
    for what in ("inference", "encoder", "training"):
        assert set(result[what]["times"]) == {"stock", "stand-in", "patched"}
        assert result[what]["relative_error"] < 1e-9
    measured = {"end_to_end": {"original": result}, "versions": {"torch": "2.14.1"}}
    header, _, *rows = report.research(measured).splitlines()
    assert header.startswith("| one picture, torch 2.14.1 | inference, stock |")
    assert [row.split(" | ")[0] for row in rows] == [
        f"| {CASE.label}", "| its encoder alone", "| the same model, its extension's stand-in instead of `patch`"
    ]  # fmt: skip
    assert report.tables_of(measured).count("one picture") == 1


def test_a_stand_in_that_computes_something_else_is_not_timed(monkeypatch):
    right = research.ops.ms_deform_attn_forward
    monkeypatch.setattr(research.ops, "ms_deform_attn_forward", lambda *arguments: 1.01 * right(*arguments))
    with pytest.raises(DisagreementError, match="original, inference: patched or stand-in and stock differ by"):
        compare_patched(CASE, seconds=0)


def test_attentions_of_the_originals_form_compute_what_those_of_transformers_do():
    torch.manual_seed(0)
    ours = research.original(**SMALL).eval()
    torch.manual_seed(0)
    theirs = research.deformable_detr(with_box_refine=True, two_stage=True, **SMALL).eval()
    states = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in states)
    with torch.no_grad():
        for model in (ours, theirs):
            for name, parameter in model.named_parameters():
                if name.endswith("sampling_offsets.weight"):
                    torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        outputs = [model.double()(**CASE.batch(torch.float64)).logits for model in (ours, theirs)]
    torch.testing.assert_close(*outputs)


def test_a_model_whose_package_is_not_installed_is_skipped_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    absent = replace(RESEARCH["rfdetr"], packages=("no_such_package",))
    monkeypatch.setitem(run.WHOLE_MODELS, "rfdetr", absent)
    threads = torch.get_num_threads()
    run.main(["--name", "here", "--only", "end_to_end", "--models", "rfdetr", "--threads", str(threads)])
    assert "  rfdetr: skipped, not installed: no_such_package\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "here.json").read_text())["end_to_end"] == {}


def test_a_table_waits_for_a_result_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.body("research", "here") == "\nNot measured yet.\n\n"
