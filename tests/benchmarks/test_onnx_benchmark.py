"""The benchmark of files of ONNX: it judges before it times, and its table names every side."""

import pytest
import torch

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)

from benchmarks import onnx, report  # noqa: E402
from benchmarks.measure import DisagreementError  # noqa: E402
from deform_attn import DeformableAttention  # noqa: E402


class Small(torch.nn.Module):
    """A few queries on the pixels themselves, as rows of numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = DeformableAttention(8, num_heads=2, num_points=2)
        self.query = torch.nn.Parameter(torch.randn(1, 9, 8))
        self.project = torch.nn.Conv2d(3, 8, 4, 4)

    def forward(self, images):
        return self.attention(self.query, self.query[..., :2].sigmoid(), self.project(images))[0]


def sides():
    model = Small().eval()
    return {"stock": onnx.GridSample(model), "patched": model}


CASE = onnx.Exported("a small one", (16, 24), sides)


@pytest.mark.slow
def test_every_form_in_every_runtime_is_judged_and_timed_beside_pytorch():
    said = []
    result = onnx.compare_exported(CASE, torch.get_num_threads(), seconds=0, say=said.append)
    files = {f"{runtime}, {form}" for runtime in ("ONNX Runtime", "OpenVINO") for form in ("gridsample", "gather")}
    files.add("ONNX Runtime, native")
    assert set(result["times"]) == {"stock", "patched"} | files
    assert result["agreed"] == dict.fromkeys({"patched"} | files, 1.0)
    assert len(said) == 1
    header, _, row = report.onnx({"onnx": {"detector": result}}).splitlines()
    assert header.startswith("| one picture | PyTorch, stock | PyTorch, patched | ONNX Runtime, gridsample |")
    assert row.startswith("| our detector, 640 x 640 | ")
    assert row.count("**") == 2


def test_a_side_that_finds_other_queries_is_not_timed(monkeypatch):
    wrong = {"stock": Small().eval(), "patched": Small().eval()}
    torch.nn.init.normal_(wrong["patched"].query)
    monkeypatch.setattr(onnx, "FORMS", {})
    case = onnx.Exported("a wrong one", (16, 24), lambda: wrong)
    with pytest.raises(DisagreementError, match=r"a wrong one: these agree with stock on too few queries: \{'patched'"):
        onnx.compare_exported(case, 1, seconds=0)


def test_queries_agree_in_another_order_and_not_beyond_the_tolerance():
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert onnx.agreement(rows.flip(0), rows) == 1
    moved = rows.clone()
    moved[0] *= 1.01
    assert onnx.agreement(moved, rows) == 0.98
