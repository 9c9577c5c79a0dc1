"""The GPU kernels on a real GPU, judged first, then timed in turns with every rival that is installed.

    python -m benchmarks.gpu --parts op --cases enc800 dec300 --dtypes bfloat16 --out benchmarks/results/gpu.json

The file gains the rows of each part as soon as it is measured. What it holds already is not measured again, so that the
same command, run until it says that nothing is left, makes a long run in parts. Nothing was run on a GPU so far.
"""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.cases import BEV, RTDETR
from benchmarks.gpu import ops, whole
from benchmarks.gpu.clock import copied_bytes_a_second
from benchmarks.gpu.results import Result, Row
from benchmarks.gpu.setting import setting_of
from benchmarks.models import MODELS
from deform_attn.timing import DEC300, ENC640, ENC800

CASES = {case.name: case for case in (ENC800, ENC640, DEC300, RTDETR, BEV)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PARTS = ("op", "models")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="the op, whole models (default: both)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="cases of the op (default: all)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models (default: all)")
    parser.add_argument("--passes", nargs="+", choices=(*ops.PASSES, *whole.PASSES), help="passes (default: all)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="dtypes (default: all; models: no float16)"
    )
    parser.add_argument("--device", default="cuda", help="device (default: cuda)")
    parser.add_argument(
        "--out", type=Path, help="JSON file that gains the rows; the table is beside it (default: none)"
    )
    parser.add_argument("--minutes", type=float, help="begin nothing new after so many minutes (default: no limit)")
    parser.add_argument("--again", action="store_true", help="measure what the file holds already, too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row, and the table at the end."""
    options = parse(arguments)
    start, device = time.perf_counter(), torch.device(options.device)
    result = Result(options.out, setting_of(device))
    copied = None
    left = 0
    for key, measure in parts(options, device):
        if result.has(key) and not options.again:
            continue
        if options.minutes is not None and time.perf_counter() - start > 60 * options.minutes:
            left += 1
            continue
        copied = copied or float(f"{copied_bytes_a_second(device):.4g}")
        rows = []
        for row in measure():
            rows.append(row if "absent" in row else row | {"copied bytes a second": copied})
            print(" ".join(f"{name}={value}" for name, value in (key | row).items()), flush=True)
        result.replace(key, rows)
    print(result.table())
    print(f"{left} parts are left; run the same command again" if left else "nothing is left")


def parts(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[Row, partial[Iterable[Row]]]]:
    """Yield what is to be measured: what its rows have in common, and the call that measures them."""
    for name in options.cases if "op" in options.parts else ():
        for dtype in options.dtypes:
            for what in _chosen(ops.PASSES, options.passes):
                key = _key(name, dtype, what, options.device, "op", "cases")
                yield key, partial(ops.rows_of, replace(CASES[name], dtype=DTYPES[dtype]), what, device)
    for name in options.models if "models" in options.parts else ():
        for dtype in (one for one in options.dtypes if one != "float16"):  # it would need a gradient scaler
            for what in _chosen(whole.PASSES, options.passes):
                key = _key(name, dtype, what, options.device, "models", "models")
                yield key, partial(whole.rows_of, MODELS[name], what, DTYPES[dtype], device)


def _chosen(passes: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    return [one for one in passes if wanted is None or one in wanted]


def _key(name: str, dtype: str, what: str, device: str, part: str, option: str) -> Row:
    command = f"python -m benchmarks.gpu --parts {part} --{option} {name} --dtypes {dtype} --passes {what}"
    return {"what": name, "dtype": dtype, "pass": what, "command": f"{command} --device {device}"}


if __name__ == "__main__":
    main()
