"""The demo, timed with one backend: writes benchmarks/results/demo-<backend>.json.

python -m benchmarks.demo --backend grid_sample
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch

from deform_attn import use_backend
from deform_attn.detr.demo import run_demo
from deform_attn.detr.evaluation.metrics import format_metrics
from deform_attn.detr.files import atomic_path
from deform_attn.detr.training.progress import progress_bar

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the demo with the backend that was asked for and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", required=True, help="one that `deform-attn info` lists as available")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    load, cpu_before, start = os.getloadavg()[0], time.process_time(), time.perf_counter()
    out = Path("runs") / f"demo-{options.backend}"
    with use_backend(options.backend), progress_bar() as shown:
        result = run_demo(out, seed=options.seed, overwrite=True, on_step=shown.on_step, on_epoch=shown.on_epoch)
    report = {
        "backend": options.backend,
        "seed": options.seed,
        "metrics": {name: round(number, 4) for name, number in result.metrics.items() if number == number},
        "epochs": len(result.history),
        "seconds": {
            "all": round(time.perf_counter() - start, 1),
            "epochs": [round(epoch["seconds"], 1) for epoch in result.history],
            "cpu": round(time.process_time() - cpu_before, 1),
        },
        "machine": {
            "cpu": _cpu(),
            "threads": torch.get_num_threads(),
            "load before": round(load, 2),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    print(format_metrics(result.metrics))
    RESULTS.mkdir(exist_ok=True)
    with atomic_path(RESULTS / f"demo-{options.backend}.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _cpu() -> str:
    """Return the processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


if __name__ == "__main__":
    main()
