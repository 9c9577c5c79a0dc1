"""The op inside ONNX Runtime: our operator, and the graph with GridSample, beside the op in PyTorch.

All stand in one process with the same threads and take turns; a time is that of `session.run`, from numpy to numpy.
`python -m benchmarks.run --only operators` runs it.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import report, runtimes
from benchmarks.measure import TOLERANCES, DisagreementError, Judge, timed
from benchmarks.packages import not_installed
from deform_attn.export import to_onnx
from deform_attn.timing import DEC300, ENC640, Case, Op

CASES = ENC640, DEC300
FORMS = {"native": "ONNX Runtime, our operator", "gridsample": "ONNX Runtime, GridSample"}
PACKAGES = "onnx", "onnxscript", "onnxruntime"


class OfCase(nn.Module):
    """An op of a case, as a module that can be exported."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, value: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """Return the output `[N, Q, M*D]`."""
        return self.op(value, points, weights)


def operators(
    threads: int, seconds: float, wait: float = 0, say: Callable[[str], None] = print
) -> dict[str, dict[str, object]]:
    """Return what `compare_operators` does of each case, from raw numbers and from locations, by name."""
    if (reason := not_installed(PACKAGES)) is not None:
        say(f"  skipped, {reason}")
        return {}
    found: dict[str, dict[str, object]] = {}
    for case in CASES:
        for fused in (False, True):
            name = f"{case.name}, raw numbers" if fused else case.name
            found[name] = compare_operators(case, fused, threads, seconds, wait)
            say(f"  {name}: {report.in_a_line({'backend': 'native', **found[name]})}")
    return found


def compare_operators(case: Case, fused: bool, threads: int, seconds: float, wait: float = 0) -> dict[str, object]:
    """Judge and time a case in PyTorch, and as a file of each form; return times and errors.

    Raises:
        DisagreementError: a side is not what the maths says.
    """
    inputs = case.inputs()
    judge = Judge(case, inputs, fused)
    ops: dict[str, Op] = {"PyTorch": case.fused_op(inputs.references) if fused else case.op()}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for form, side in FORMS.items():
            file = Path(folder) / f"{form}.onnx"
            to_onnx(OfCase(ops["PyTorch"]), judge.tensors, file, form=form, dynamic=False, verify=False)
            run = runtimes.onnxruntime(file, threads, ours=form == "native")
            ops[side] = lambda *tensors, run=run: run(*tensors)[0]
        errors = {side: judge.output_error(op) for side, op in ops.items()}
        if wrong := {side: error for side, error in errors.items() if not error <= TOLERANCES[case.dtype]}:
            raise DisagreementError(f"{case.name}: {wrong}")
        calls = {side: lambda op=op: op(*judge.tensors) for side, op in ops.items()}
        rows, busy = timed(calls, seconds, "PyTorch", wait)
    return {"times": rows, "relative_error": errors, "busy_elsewhere": busy}
