"""The accuracy of every backend in every dtype: `python -m benchmarks.accuracy`.

It writes benchmarks/results/accuracy.json and prints the tables, in a few seconds.

`--markdown` measures nothing and writes the tables of docs/backends.md anew from the result that is there.

The truth is the maths in float64 of the same tensors, already rounded to their dtypes: what is measured is the
arithmetic and the rounding of the results, not that of the inputs. An error is max |actual - expected| / max |expected|
over a whole tensor. Gradients of points leave out those within a thousandth of a pixel of a line that joins pixel
centres, where the bilinear surface has a kink and two correct float32 formulas may take the slope of either side.
"""

import argparse
import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.measure import described, off_kinks
from benchmarks.packages import versions
from benchmarks.sources import commit
from deform_attn import explain, reference, use_backend
from deform_attn.backends.native import library as native_library
from deform_attn.timing import ENC640, Case, Op, machine, training

CASE = replace(ENC640, name="enc640, 500 queries", queries=500)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FORMS = {
    "classic": ("multi_scale_deformable_attention", ("value", "locations", "weights")),
    "fused": ("deformable_attention", ("value", "offsets", "logits")),
}
DOCUMENT = report.ROOT / "docs" / "backends.md"
BLOCK = re.compile(r"(<!-- accuracy -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
THREADS = 1  # the sums of torch's own kernels may depend on it

Errors = dict[str, float]


def measure(case: Case, dtypes: Sequence[torch.dtype] = DTYPES) -> dict[str, Any]:
    """Return `{form: {dtype: {backend: {tensor: error}}}}`; a backend that cannot run on this CPU is left out."""
    call = torch.zeros(1, 1, 1, 1), [(1, 1)], torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1)
    available = [name for name, reasons in explain(*call).reasons.items() if not reasons]
    errors: dict[str, Any] = {}
    for form in FORMS:
        for dtype in dtypes:
            rows = errors.setdefault(form, {}).setdefault(str(dtype).removeprefix("torch."), {})
            truth = _Truth(replace(case, dtype=dtype), form)
            for backend in available:
                with use_backend(backend):
                    rows[backend] = truth.errors()
    return errors


class _Truth:
    """Output and gradients of a case in float64, for one form of the op."""

    def __init__(self, case: Case, form: str) -> None:
        inputs, self.names = case.inputs(), FORMS[form][1]
        sizes = case.batch, case.query_count, case.heads * case.channels
        self.tensors: list[Tensor] = [getattr(inputs, name) for name in self.names]
        self.direction = torch.randn(sizes, generator=torch.Generator().manual_seed(1)).to(case.dtype)
        self.op: Op = case.op() if form == "classic" else case.fused_op(inputs.references)
        self.smooth = off_kinks(case, inputs.locations).reshape(self.tensors[1].shape[:-1])[..., None]
        shapes, points = case.spatial_shapes, case.num_points
        if form == "classic":
            maths = partial(reference.multi_scale_deformable_attention, num_points=points)
        else:
            maths = partial(_from_offsets, inputs.references.double(), num_points=points)

        def truth(value: Tensor, *others: Tensor) -> Tensor:
            N, Q, M, T = case.batch, case.query_count, case.heads, sum(points)
            return maths(value, shapes, others[0].reshape(N, Q, M, T, 2), others[1].reshape(N, Q, M, T))

        self.expected = self._run(truth, [tensor.double() for tensor in self.tensors], self.direction.double())

    def errors(self) -> Errors:
        """Return the error of the output and of each gradient on the backend that is in use."""
        actual = self._run(self.op, self.tensors, self.direction)
        return {name: _error(actual[name], self.expected[name]) for name in actual}

    def _run(self, op: Op, tensors: Sequence[Tensor], direction: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            output = op(*tensors)
        grads = dict(zip((f"grad {name}" for name in self.names), training(op, tensors, direction)(), strict=True))
        points = f"grad {self.names[1]}"
        return {"output": output, **grads, points: grads[points] * self.smooth}


def _from_offsets(
    references: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]], offsets: Tensor, logits: Tensor, **counts: Any
) -> Tensor:
    return reference.deformable_attention(value, shapes, references, offsets, logits, **counts)


def _error(actual: Tensor, expected: Tensor) -> float:
    """Return max |actual - expected| / max |expected|, to two digits; a number that is not finite: inf."""
    error = ((actual.double() - expected).abs().max() / expected.abs().max()).item()
    return float(f"{error:.1e}") if error == error else float("inf")


def tables(result: report.Result) -> str:
    """Return a table for each form of the op."""
    parts = []
    for form, (function, names) in FORMS.items():
        columns = ["output", *(f"grad {name}" for name in names)]
        lines = [("value", "backend", *columns), ("---",) * (2 + len(columns))]
        for dtype, rows in result["errors"][form].items():
            for backend, errors in rows.items():
                lines.append((dtype, f"`{backend}`", *(_number(errors[column]) for column in columns)))
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        parts.append(f"`{function}`:\n\n{table}")
    here, case = result["machine"], result["case"]
    sizes = ", ".join(f"{H} x {W}" for H, W in case["spatial_shapes"])
    where = (
        f"Maps of {sizes}, {case['queries']} queries, {case['heads']} heads of {case['channels']} channels, "
        f"{case['num_points'][0]} points a level; {here['processor']}, {result['threads']} thread, kernels for "
        f"{here['our_instruction_set']}, torch {here['torch']}, sources at {result['commit']}, {result['measured']}."
    )
    return "\n\n".join([*parts, where])


def _number(error: float) -> str:
    return f"{error:.1e}" if error else "0"


def body(result: report.Result) -> str:
    """Return what stands between the marks in docs/backends.md."""
    return f"\n{tables(result)}\n\n"


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="only write the tables of docs/backends.md")
    path: Path = report.RESULTS / "accuracy.json"
    if not parser.parse_args(arguments).markdown:
        torch.set_num_threads(THREADS)
        library, _ = native_library.load()
        result = {
            "case": {name: what for name, what in described(CASE).items() if name != "dtype"},
            "machine": {**machine(), "our_instruction_set": "none" if library is None else library.isa},
            "threads": THREADS,
            "versions": {name: text for name, text in versions().items() if name in ("deform-attn", "torch")},
            "commit": commit(),
            "measured": datetime.date.today().isoformat(),
            "errors": measure(CASE, DTYPES),
        }
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{tables(result)}\n\nwrote {path}")
        return
    text = DOCUMENT.read_text()
    new = BLOCK.sub(lambda found: f"{found[1]}{body(json.loads(path.read_text()))}{found[3]}", text)
    if new != text:
        DOCUMENT.write_text(new)
        print(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    main()
