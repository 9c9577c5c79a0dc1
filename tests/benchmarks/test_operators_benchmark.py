"""The benchmark of the op inside ONNX Runtime: it judges before it times."""

import pytest
import torch

from benchmarks import operators, report
from benchmarks.cases import TINY
from benchmarks.measure import DisagreementError
from deform_attn.backends.native import registration

for package in operators.PACKAGES:
    pytest.importorskip(package)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built"),
]


@pytest.mark.parametrize("fused", [False, True])
def test_all_sides_are_judged_and_timed(fused):
    result = operators.compare_operators(TINY, fused, threads=1, seconds=0)
    sides = ["PyTorch", *operators.FORMS.values()]
    assert [*result["times"]] == [*result["relative_error"]] == sides
    assert result["times"]["PyTorch"]["ratio"] == 1
    assert all(0 < error < 2e-5 for error in result["relative_error"].values())
    header, _, row = report.operators({"operators": {"tiny": result}}).splitlines()
    assert header == f"|  | {' | '.join(sides)} |"
    assert row.startswith("| tiny | ")


def test_a_side_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setitem(operators.TOLERANCES, torch.float32, 0.0)
    with pytest.raises(DisagreementError, match="tiny: "):
        operators.compare_operators(TINY, fused=True, threads=1, seconds=0)
