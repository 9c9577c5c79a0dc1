"""Independence: what a fixed number of queries costs on larger and larger maps.

`python -m benchmarks.evidence.independence` measures, writes benchmarks/results/evidence-independence.json and draws
it. The op alone, from ready-made locations and weights; dense attention gets ready-made queries, keys and values.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.evidence import plots, results
from benchmarks.evidence.timing import medians
from benchmarks.measure import TOLERANCES, Bystanders, Judge
from deform_attn.timing import Call, Case, grid_sample_op

NAME = "evidence-independence"
QUERIES = 300
SIDES = (32, 64, 128, 256, 512, 1024)


def main() -> None:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="in all (default 60)")
    options = parser.parse_args()
    measured = measure(SIDES, options.seconds)
    path = results.write(NAME, measured)
    print(f"wrote {path} and {plots.draw_independence(measured)}")


@torch.no_grad()
def measure(sides: Sequence[int], seconds: float, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Return the median milliseconds of each kind on a map of each of `sides`.

    In the window all maps are read at the same pixels, those of the first map; spread, the queries lie all over.

    Raises:
        RuntimeError: ours is wrong.
    """
    calls: dict[tuple[str, int], Call] = {}
    first = case_of(sides[0])
    weights = first.inputs().weights
    for side in sides:
        case = case_of(side)
        inputs = case.inputs()
        error = Judge(case, inputs).output_error(case.op())
        if error > TOLERANCES[case.dtype]:
            raise RuntimeError(f"ours is wrong on a map of {side}: relative error {error:.1e}")
        calls["window", side] = partial(case.op(), inputs.value, in_window(first, side), weights)
        calls["spread", side] = partial(case.op(), *inputs[:3])
        calls["grid_sample", side] = partial(grid_sample_op(case), *inputs[:3])
        calls["dense", side] = _dense(inputs.value)
    bystanders = Bystanders()
    taken, count = medians({f"{kind} {side}": call for (kind, side), call in calls.items()}, seconds)
    table: dict[str, dict[str, float]] = {}
    for kind, side in calls:
        table.setdefault(kind, {})[str(side)] = float(f"{1e3 * taken[f'{kind} {side}']:.4g}")
    growth = {kind: round(points[str(sides[-1])] / points[str(sides[0])], 2) for kind, points in table.items()}
    for kind, points in table.items():
        say(f"  {kind}: {points}, {growth[kind]}x from first to last")
    return {
        "queries": QUERIES,
        "op": {"heads": 8, "channels": 32, "points": 4, "dtype": "float32"},
        "milliseconds": table,
        "growth": growth,
        "rounds": count,
        "busy_elsewhere": round(bystanders.lap() or 0.0, 2),
    }


def case_of(side: int) -> Case:
    """Return the queries on a map of `side`."""
    return Case(f"map-{side}", ((side, side),), queries=QUERIES, num_points=(4,))


def in_window(first: Case, side: int) -> Tensor:
    """Return locations that are the same pixels on a map of any `side`: those of `first`, drawn in to lie inside it."""
    return (0.25 + first.inputs().locations / 2) * first.spatial_shapes[0][0] / side


def _dense(value: Tensor) -> Call:
    """Return the call of dense attention of as many queries on the keys and values `[N, S, M, D]`."""
    query = torch.randn(1, value.shape[2], QUERIES, value.shape[3])
    key = value.transpose(1, 2).contiguous()  # [N, M, S, D]
    return partial(F.scaled_dot_product_attention, query, key, key)


if __name__ == "__main__":
    main()
