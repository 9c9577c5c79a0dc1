"""What the host does for a call on a GPU, timed without one: `python -m benchmarks.gpu.host`.

The driver of no_device.py takes launches and does nothing with them. Tensors are those of the CPU, which the backend
takes for a GPU. So a time is from the entry point to the launch, and back: what Python, torch and Triton do. It is the
processor's time of this process alone, the median of rounds in which the calls take turns. It writes
benchmarks/results/gpu-host.json and a table of docs/contributing/gpu-kernels.md.
"""

import json
import platform
import re
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.gpu.no_device import active_driver
from benchmarks.markdown import table
from benchmarks.sources import commit
from deform_attn import deformable_attention, multi_scale_deformable_attention
from deform_attn.backends.triton import backend
from deform_attn.timing import machine

MAPS = [(10, 16), (5, 8), (3, 4), (2, 2)]
N, Q, M, D, P = 1, 20, 8, 32, 4
ROUNDS, CALLS = 41, 300
GOALS = {"without gradients": 30, "recorded for gradients": 60}  # microseconds

PATH = report.RESULTS / "gpu-host.json"
DOCUMENT = report.ROOT / "docs" / "contributing" / "gpu-kernels.md"
BLOCK = re.compile(r"(<!-- host -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)

Call = Callable[[], Tensor]


def calls() -> dict[tuple[str, str], Call]:
    """Return a call of each op with gradients and without, each of a kind that was seen before."""
    S, L = sum(H * W for H, W in MAPS), len(MAPS)
    value, points = torch.rand(N, S, M, D), torch.rand(N, Q, M, L, P, 2)
    ops = {
        "classic": (multi_scale_deformable_attention, (value, points, torch.rand(N, Q, M, L, P))),
        "fused": (deformable_attention, (value, torch.rand(N, Q, L, 2), points, torch.rand(N, Q, M, L * P))),
    }
    made: dict[tuple[str, str], Call] = {}
    for form, (op, tensors) in ops.items():
        for what in GOALS:
            first, *rest = [tensor.clone().requires_grad_(what != "without gradients") for tensor in tensors]
            made[form, what] = lambda op=op, first=first, rest=rest: op(first, MAPS, *rest, backend="triton")
    return made


def measure() -> report.Result:
    """Return the median time of each call in microseconds."""
    driver = active_driver("sm_90")
    torch.set_num_threads(1)
    with mock.patch.dict(backend.KEYS, {"cpu": "CPU"}):
        timed = calls()
        times: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
        for call in timed.values():
            for _ in range(CALLS):
                call()
        before = driver.launches
        for _ in range(ROUNDS):
            for key, call in timed.items():
                start = time.process_time()
                for _ in range(CALLS):
                    call()
                times[key].append((time.process_time() - start) / CALLS * 1e6)
    if driver.launches - before != ROUNDS * CALLS * len(timed):
        raise RuntimeError("not every call was a launch: nothing was measured")
    rows = [
        {"op": form, "what": what, "microseconds": round(statistics.median(found), 1), "goal": GOALS[what]}
        for (form, what), found in times.items()
    ]
    return {
        "processor": machine()["processor"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "rows": rows,
    }


def body(result: report.Result) -> str:
    """Return what stands between the marks of the page."""
    rows = [(row["op"], row["what"], f"{row['microseconds']} µs", f"{row['goal']} µs") for row in result["rows"]]
    made_with = f"{result['processor']}, Python {result['python']}, torch {result['torch']}."
    return f"\n{table(('op', 'call', 'median', 'goal'), rows)}\n\n{made_with}\n\n"


def main() -> None:
    """Measure, print, and write the result and the page."""
    result = measure()
    PATH.write_text(json.dumps(result, indent=1) + "\n")
    DOCUMENT.write_text(BLOCK.sub(lambda found: f"{found[1]}{body(result)}{found[3]}", DOCUMENT.read_text()))
    print(body(result))


if __name__ == "__main__":
    main()
