"""The GPU kernels on a real GPU, case by case: judged first, then timed by the device's clock. One JSON, and a table.

    python -m benchmarks.gpu --cases enc800 dec300 --dtypes float32 bfloat16 --out benchmarks/results/gpu.json

A run adds its rows to the file, so that a long one can be made in parts. Nothing was run on a GPU so far.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import BEV, RTDETR
from benchmarks.measure import TOLERANCES, DisagreementError
from deform_attn.timing import DEC300, ENC640, ENC800, Case, Op, grid_sample_op, relative_error, training

CASES = {case.name: case for case in (ENC800, ENC640, DEC300, RTDETR, BEV)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PASSES = ("forward", "backward", "deterministic")
ROUNDS = 20

Row = dict[str, object]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and add the rows to the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="cases to run (default: all)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="dtypes of value (default: all)"
    )
    parser.add_argument("--device", default="cuda", help="device (default: cuda)")
    parser.add_argument("--out", type=Path, help="JSON file to which the rows are added (default: none)")
    args = parser.parse_args(arguments)
    rows = []
    for name in args.cases:
        for dtype in args.dtypes:
            for row in measured(replace(CASES[name], dtype=DTYPES[dtype]), torch.device(args.device)):
                row["command"] = f"python -m benchmarks.gpu --cases {name} --dtypes {dtype} --device {args.device}"
                rows.append(row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    if args.out is not None:
        known = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
        args.out.write_text(
            json.dumps({"device": device_name(torch.device(args.device)), "rows": known + rows}, indent=1)
        )


def measured(case: Case, device: torch.device) -> Iterator[Row]:
    """Yield a row for each competitor and pass of a case.

    Raises:
        DisagreementError: our output or a gradient is not what the reference says.
    """
    inputs = [tensor.to(device) for tensor in case.inputs()]
    value, locations, weights, references, offsets, logits = inputs
    pull = torch.ones(case.batch, case.query_count, case.heads * case.channels, dtype=case.dtype, device=device)
    classic, raw = (value, locations, weights), (value, offsets, logits)
    competitors: dict[str, tuple[Op, tuple[Tensor, ...]]] = {
        "ours": (case.op(), classic),
        "ours fused": (case.fused_op(references), raw),
    }
    if case.dtype == torch.float32:  # in half precision grid_sample refuses float32 coordinates
        competitors["grid_sample"] = (grid_sample_op(case), classic)
        competitors["grid_sample compiled"] = (torch.compile(grid_sample_op(case)), classic)
    judge(case, competitors["ours"][0], classic)
    for name, (op, tensors) in competitors.items():
        for what in PASSES:
            if what == "deterministic" and not name.startswith("ours"):
                continue  # torch's grid_sample raises then
            call: Callable[[], object] = (
                (lambda op=op, tensors=tensors: op(*tensors)) if what == "forward" else training(op, tensors, pull)
            )
            torch.use_deterministic_algorithms(what == "deterministic")
            try:
                seconds, memory = timed(call, device)
            finally:
                torch.use_deterministic_algorithms(False)
            yield {
                "case": case.name,
                "dtype": str(case.dtype).removeprefix("torch."),
                "competitor": name,
                "pass": what,
                "milliseconds": round(1e3 * statistics.median(seconds), 4),
                "fastest": round(1e3 * min(seconds), 4),
                "peak bytes": memory,
                "copied bytes a second": copy_rate(value, device),
            }


def judge(case: Case, op: Op, tensors: tuple[Tensor, ...]) -> None:
    """Compare 256 queries of an output with the reference in float64."""
    rows = torch.linspace(0, case.query_count - 1, min(256, case.query_count)).long()
    actual = op(*tensors)[:, rows.to(tensors[0].device)].cpu()
    value, locations, weights = (tensor.cpu().double() for tensor in tensors)
    expected = replace(case, dtype=torch.float64).op("reference")(value, locations[:, rows], weights[:, rows])
    error = relative_error(actual, expected)
    if not error <= TOLERANCES[case.dtype]:
        raise DisagreementError(f"{case.name} in {case.dtype}: the output is off by {error:.1e}")


def timed(call: Callable[[], object], device: torch.device) -> tuple[list[float], int]:
    """Return the seconds of each of some calls, after two to warm up, and the most memory that they took."""
    call()
    call()
    if device.type != "cuda":
        return [wall(call) for _ in range(3)], 0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    seconds = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return seconds, torch.cuda.max_memory_allocated(device) - before


def wall(call: Callable[[], object]) -> float:
    """Return the seconds of one call by the host's clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def copy_rate(value: Tensor, device: torch.device) -> int:
    """Return the bytes a second of a copy on the device, read and written."""
    source = torch.empty(max(value.numel(), 2**24), dtype=value.dtype, device=device)
    target = torch.empty_like(source)
    seconds, _ = timed(lambda: target.copy_(source), device)
    return int(2 * source.nbytes / statistics.median(seconds))


def device_name(device: torch.device) -> str:
    """Return what the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
