"""Cost: time and memory of one encoder layer's attention against the side of the picture, dense and deformable.

`python -m benchmarks.evidence.cost` measures, writes benchmarks/results/evidence-cost.json and draws it. Features have
stride 8: a picture of twice the side has four times the pixels, and dense attention sixteen times the pairs.
"""

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks import memory
from benchmarks.evidence import plots, results
from benchmarks.evidence.layers import HEADS, KINDS, POINTS, STRIDE, WIDTH, call
from benchmarks.evidence.timing import medians
from benchmarks.measure import Bystanders
from deform_attn import use_backend
from deform_attn.timing import relative_error

NAME = "evidence-cost"
SIDES = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
LARGEST = {  # that fits 24 GiB, or whose five calls end within minutes
    "forward": {"deformable": 2048, "dense": 2048, "dense, whole matrix": 768, "deformable, grid_sample": 1024},
    "training": {"deformable": 2048, "dense": 1024, "dense, whole matrix": 512, "deformable, grid_sample": 1024},
}
FITTED_FROM = 512  # far above 181, from where on the pairs take more multiplications than the projections
JUDGED_UP_TO = 256

Points = Mapping[str, float]


def main() -> None:
    """Measure what the command line names, write and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="for each side and direction (default 10)")
    parser.add_argument("--peak", nargs=3, metavar=("KIND", "SIDE", "WAY"), help="only print the memory of one call")
    options = parser.parse_args()
    if options.peak is not None:
        kind, side, way = options.peak
        print(json.dumps(_peak(kind, int(side), way == "training")))
        return
    measured = measure(SIDES, options.seconds)
    path = results.write(NAME, measured)
    print(f"wrote {path} and {plots.draw_cost(measured)}")


def measure(sides: Sequence[int], seconds: float, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Return times and memory of each kind at `sides`, exponents fitted to them, and where deformable gets cheaper.

    Raises:
        RuntimeError: the kinds do not compute what the maths says.
    """
    for side in sides:
        if side <= JUDGED_UP_TO:
            _judge(side)
    times: dict[str, dict[str, dict[str, float]]] = {}
    peaks: dict[str, dict[str, dict[str, float]]] = {}
    busy: dict[str, float] = {}
    counts: dict[str, int] = {}
    for way, side in itertools.product(LARGEST, sides):
        bystanders = Bystanders()
        kinds = [kind for kind, largest in LARGEST[way].items() if side <= largest]
        with torch.set_grad_enabled(way == "training"):
            calls = {kind: call(kind, side, way == "training") for kind in kinds}
            taken_by, counts[f"{way} {side}"] = medians(calls, seconds)
        for kind, taken in taken_by.items():
            times.setdefault(way, {}).setdefault(kind, {})[str(side)] = taken
            peaks.setdefault(way, {}).setdefault(kind, {})[str(side)] = _peak_elsewhere(kind, side, way)
            say(f"  {way} {side} {kind}: {1e3 * taken:.1f} ms, {peaks[way][kind][str(side)] / 1e6:.0f} MB")
        busy[f"{way} {side}"] = round(bystanders.lap() or 0.0, 2)
    return {
        "layer": {"width": WIDTH, "heads": HEADS, "points": POINTS, "stride": STRIDE, "dtype": "float32"},
        "seconds": times,
        "peak_bytes": peaks,
        "exponents": {
            what: {way: {kind: exponents(points) for kind, points in rows.items()} for way, rows in table.items()}
            for what, table in (("seconds", times), ("peak_bytes", peaks))
        },
        "fitted_from": FITTED_FROM,
        "crossing": {
            way: {kind: crossing(rows["dense"], rows[kind]) for kind in ("deformable", "deformable, grid_sample")}
            for way, rows in times.items()
        },
        "rounds": counts,
        "busy_elsewhere": busy,
    }


def exponents(points: Points) -> dict[str, float]:
    """Return the exponent of the side that fits `points` best: of `all` of them, and of the `large` sides.

    Where there are fewer than three points, a line through them says nothing of how well it fits, and there is none.

    Example:
        >>> exponents({"128": 1.0, "256": 4.0, "512": 16.0, "1024": 64.0, "2048": 256.0})
        {'all': 2.0, 'large': 2.0}
    """
    large = {side: value for side, value in points.items() if int(side) >= FITTED_FROM}
    found = {"all": points, "large": large}
    return {name: round(_slope(chosen), 2) for name, chosen in found.items() if len(chosen) > 2}


def crossing(dense: Points, deformable: Points) -> float | None:
    """Return the side from which on `deformable` takes less than `dense`: 0 if always, None if never.

    Example:
        >>> crossing({"128": 1.0, "256": 16.0}, {"128": 2.0, "256": 8.0})
        181.0
    """
    sides = [side for side in dense if side in deformable]
    leads = [math.log(dense[side] / deformable[side]) for side in sides]
    last = max((i for i, lead in enumerate(leads) if lead < 0), default=-1)
    if last < 0:
        return 0.0
    if last == len(sides) - 1:
        return None
    share = leads[last] / (leads[last] - leads[last + 1])
    before, after = math.log(int(sides[last])), math.log(int(sides[last + 1]))
    return float(round(math.exp(before + share * (after - before))))


def _slope(points: Points) -> float:
    x = [math.log(int(side)) for side in points]
    y = [math.log(max(value, 1e-12)) for value in points.values()]
    return statistics.linear_regression(x, y).slope


def _judge(side: int) -> None:
    """Compare output and gradients: deformable with the maths in plain torch, the ways of dense with one another."""
    for trains in (False, True):
        with torch.set_grad_enabled(trains):
            found = {kind: call(kind, side, trains)() for kind in KINDS}
            with use_backend("reference"):
                found["reference"] = call("deformable", side, trains)()
        for first, second in (
            ("deformable", "reference"),
            ("deformable, grid_sample", "reference"),
            ("dense", "dense, whole matrix"),
        ):
            error = max(relative_error(*both) for both in zip(found[first], found[second], strict=True))
            if error > 1e-4:
                what = "gradients" if trains else "output"
                raise RuntimeError(f"{first} and {second} differ by {error:.1e} of the {what} at side {side}")


def _peak_elsewhere(kind: str, side: int, way: str) -> int:
    command = [sys.executable, "-m", __spec__.name, "--peak", kind, str(side), way]
    return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["peak_growth"])


def _peak(kind: str, side: int, trains: bool) -> dict[str, int]:
    """Return the growth of memory during one call; a small one was made before, for libraries and threads."""
    with torch.set_grad_enabled(trains):
        call(kind, 64, trains)()
        return memory.peak_of(call(kind, side, trains))


if __name__ == "__main__":
    main()
