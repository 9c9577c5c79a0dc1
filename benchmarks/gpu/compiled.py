"""What the GPU kernels are compiled to, for GPUs that are not here: `python -m benchmarks.gpu.compiled`.

It compiles each kernel of a table of calls, which takes half an hour of a core, and writes
benchmarks/results/gpu-compiled.json and the table of docs/gpu.md after each. What the file holds of this Triton and of
these kernels is not compiled again, so that a long run can be made in parts. `--gpus`, `--channels` and `--passes`
choose; `--markdown` compiles nothing and writes the table.

Instructions are those that a warp runs for one row, a query and head, and one of its points, if it takes all that are
in the code. Rows that are done with care, of which most calls have none, are left out of them in a backward pass, but
registers, stack and spills are those of the kernel that runs.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import report
from benchmarks.gpu.machine_code import code_of
from benchmarks.gpu.no_device import active_driver, call, kernel_of, row_points_a_warp
from benchmarks.markdown import table
from deform_attn.backends.triton import launch

GPUS = ("sm_80", "sm_90", "sm_100", "gfx942")
FORMS = ("classic", "fused")
PASSES = ("forward", "backward")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CHANNELS = (16, 32, 64)
BACKWARD_ON = "sm_90"
QUERIES = 40_000  # more than fill a GPU, and not those of the maps' own pixels

# On sm_90 at 32 channels and 16 points: forward passes of either op, backward passes of both. No kernel may spill.
MOST = {
    "classic": {"float32": 14.5, "float16": 14.5, "bfloat16": 16.0},
    "fused": {"float32": 15.0, "float16": 16.0, "bfloat16": 16.0},
}
MOST_BACKWARD = 38.0

PATH = report.RESULTS / "gpu-compiled.json"
DOCUMENT = report.ROOT / "docs" / "gpu.md"
BLOCK = re.compile(r"(<!-- compiled -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)

Row = dict[str, Any]


@dataclass(frozen=True)
class Kernel:
    """A kernel of the table; in `strips` the queries are the pixels of the maps."""

    gpu: str
    backward: bool
    form: str
    dtype: str
    channels: int = 32
    strips: bool = False

    def row(self) -> Row:
        """Compile it, and return what is in its code."""
        active_driver(self.gpu)
        given = call(self.form, dtype=DTYPES[self.dtype], D=self.channels, queries=None if self.strips else QUERIES)
        code = code_of(kernel_of(given, self.backward))
        with mock.patch.object(launch, "CAREFUL", not self.backward):
            counts = code_of(kernel_of(given, self.backward)).instructions
            each = sum(counts.values()) / row_points_a_warp(given, self.backward)
        return asdict(self) | {
            "instructions": round(each, 1),
            "registers": code.registers,
            "stack": code.stack,
            "spills": code.spills,
            "reads": {str(bits): number for bits, number in code.reads.items()},
            "atomics": {str(bits): number for bits, number in code.atomics.items()},
        }


def kernels() -> Iterator[Kernel]:
    """Yield the kernels of the table."""
    for gpu in GPUS:
        for backward in (False, True) if gpu == BACKWARD_ON else (False,):
            for form in FORMS:
                for dtype in DTYPES:
                    for channels in CHANNELS:
                        yield Kernel(gpu, backward, form, dtype, channels)
    for dtype in DTYPES:
        yield Kernel(BACKWARD_ON, False, "classic", dtype, strips=True)
    yield Kernel(BACKWARD_ON, True, "classic", "float32", strips=True)


def kernel_of_row(row: Row) -> Kernel:
    """Return the kernel that a row is of."""
    return Kernel(**{field.name: row[field.name] for field in fields(Kernel)})


def tables(result: report.Result) -> str:
    """Return the rows as a table, with a line for all numbers of channels of a kernel."""
    found: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in result["rows"]:
        key = row["gpu"], row["backward"], row["form"], row["dtype"], row["strips"]
        found.setdefault(key, {})[row["channels"]] = row
    lines = []
    for (gpu, backward, form, dtype, strips), rows in found.items():
        what = f"{'backward' if backward else 'forward'}, {form}{', strips' if strips else ''}"

        def cell(name: str, rows: dict[int, Row] = rows) -> str:
            return " / ".join(str(rows[channels][name]) if channels in rows else "-" for channels in CHANNELS)

        widest = rows[32] if 32 in rows else next(iter(rows.values()))
        lines.append(
            (
                gpu, what, dtype, cell("instructions"), cell("registers"), cell("stack"), cell("spills"),
                _widths(widest["reads"]), _widths(widest["atomics"]),
            )
        )  # fmt: skip
    header = ("GPU", "kernel", "value", "instructions", "registers", "stack", "spills", "reads", "atomic sums")
    return table(header, lines)


def _widths(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} of {bits}" for bits, number in numbers.items()) or "-"


def body(result: report.Result) -> str:
    """Return what stands between the marks in docs/gpu.md."""
    return f"\n{tables(result)}\n\nTriton {result['triton']}, kernels {result['kernels']}.\n\n"


def load() -> dict[str, Any]:
    """Return the committed result, empty where it is of another Triton or of other kernels."""
    import triton

    here: dict[str, Any] = {"triton": triton.__version__, "kernels": kernels_digest(), "rows": []}
    found = json.loads(PATH.read_text()) if PATH.exists() else {}
    return found if all(found.get(name) == here[name] for name in ("triton", "kernels")) else here


def kernels_digest() -> str:
    """Return a digest of all that decides what is compiled: the kernels, and the tiles of their launches."""
    folder = Path(launch.__file__).parent
    sources = [folder / "tiles.py", *sorted((folder / "kernels").glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.compiled", description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", nargs="+", choices=GPUS, default=GPUS, help="GPUs (default: all)")
    parser.add_argument("--channels", nargs="+", type=int, choices=CHANNELS, default=CHANNELS, help="default: all")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES, help="passes (default: both)")
    parser.add_argument("--markdown", action="store_true", help="only write the table of docs/gpu.md")
    options = parser.parse_args(arguments)
    if options.markdown:
        _write_page(json.loads(PATH.read_text()))
        return
    result = load()
    order = list(kernels())
    have = {kernel_of_row(row) for row in result["rows"]}
    for kernel in order:
        if kernel in have or kernel.gpu not in options.gpus or kernel.channels not in options.channels:
            continue
        if PASSES[kernel.backward] not in options.passes:
            continue
        row = kernel.row()
        print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
        result["rows"].append(row)
        result["rows"].sort(key=lambda row: order.index(kernel_of_row(row)))
        PATH.write_text(json.dumps(result, indent=1) + "\n")
        _write_page(result)
    left = len(order) - len(result["rows"])
    print(f"{left} kernels of the table are left" if left else "nothing is left")


def _write_page(result: report.Result) -> None:
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(BLOCK.sub(lambda found: f"{found[1]}{body(result)}{found[3]}", text))


if __name__ == "__main__":
    main()
