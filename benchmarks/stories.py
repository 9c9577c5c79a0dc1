"""Tables of the results that are stories of their own: the trees, and the evidence."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.markdown import table

Result = Mapping[str, Any]


def setting(result: Result) -> str:
    """Return what a story was measured on, in a line."""
    here = result["machine"]
    kernels = here["our_instruction_set"]
    return (
        f"Measured on {result['measured']}: {here['processor']}, {here['cores']} cores, torch {here['torch']} with "
        f"{result['threads']} threads, kernels for {kernels}, sources at {result['commit']}."
    )


def trees(result: Result) -> str:
    """Return what each seed came to, and the range."""
    rows = []
    for seed, row in result["seeds"].items():
        threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
        rows.append((seed, *(f"{row[name]:.3f}" for name in _TREES), f"{row['seconds'] / 60:.0f} min, {threads}"))
    values = {name: [row[name] for row in result["seeds"].values()] for name in _TREES}
    rows.append(("mean", *(f"{statistics.mean(values[name]):.3f}" for name in _TREES), ""))
    rows.append(("range", *(f"{min(values[name]):.3f} - {max(values[name]):.3f}" for name in _TREES), ""))
    return table(("seed", *_TREES, "start to end, on"), rows)


def cost(result: Result) -> str:
    """Return the exponents of the side, and where deformable attention gets cheaper."""
    rows = []
    for what, way, label in (
        ("seconds", "forward", "time, forward"),
        ("seconds", "training", "time, forward and backward"),
        ("peak_bytes", "forward", "memory, forward"),
        ("peak_bytes", "training", "memory, forward and backward"),
    ):
        for kind, exponent in result["exponents"][what][way].items():
            sides = [int(side) for side in result[what][way][kind]]
            cells = (f"{exponent[name]:.1f}" if name in exponent else "-" for name in ("all", "large"))
            rows.append((label, kind, f"{min(sides)} - {max(sides)}", *cells))
    return table(
        ("", "attention", "sides measured", "exponent, all sides", f"from side {result['fitted_from']} on"), rows
    )


def cost_times(result: Result) -> str:
    """Return time and memory of the forward pass at each side."""
    times, peaks = result["seconds"]["forward"], result["peak_bytes"]["forward"]
    rows = []
    for side in times["deformable"]:
        cells = [
            f"{_time(times[kind][side])}, {peaks[kind][side] / 1e6:.0f} MB" if side in times[kind] else "-"
            for kind in times
        ]
        ratio = f"{times['dense'][side] / times['deformable'][side]:.2f}x" if side in times["dense"] else "-"
        rows.append((side, *cells, ratio))
    return table(("side", *times, "dense / deformable"), rows)


def cost_crossing(result: Result) -> str:
    """Return the side of the picture from which on deformable attention takes less time than dense."""
    words = {"forward": "forward", "training": "forward and backward"}
    rows = [(words[way], *map(_since, sides.values())) for way, sides in result["crossing"].items()]
    return table(("faster than dense", *result["crossing"]["forward"]), rows)


def _since(side: float | None) -> str:
    if side is None:
        return "at no side measured"
    return "at every side" if side == 0 else f"from about {side:.0f} pixels on"


def independence(result: Result) -> str:
    """Return the milliseconds of the queries on each map."""
    labels = {
        "window": "deformable, the same pixels read",
        "spread": "deformable, spread over the map",
        "grid_sample": "grid_sample, spread",
        "dense": "dense",
    }
    rows = [
        (
            label,
            *(_time(value / 1e3) for value in result["milliseconds"][kind].values()),
            f"{result['growth'][kind]:g}x",
        )
        for kind, label in labels.items()
    ]
    sides = [f"{side} x {side}" for side in result["milliseconds"]["window"]]
    return table((f"{result['queries']} queries", *sides, "last / first"), rows)


def convergence(result: Result) -> str:
    """Return what each training was and what it came to on test scenes."""
    rows = []
    for name, seeds in result["runs"].items():
        kind, curves = name.partition(",")[0], list(seeds.values())
        epochs, pace = curves[0][-1]["epoch"], result["seconds_per_epoch"][kind]
        parts = (f"{result['parameters'][kind] / 1e3:.0f} thousand", f"{result['chosen'][kind]:g}", f"{epochs:.0f}")
        last = _mean_and_range([rows[-1]["AP"] for rows in curves])
        rows.append((name, *parts, f"{pace:.1f} s", f"{epochs * pace:.0f} s", last))
    header = ("attention", "parameters", "learning rate", "epochs", "an epoch takes", "all of them")
    return table((*header, "AP at the end: mean (range)"), rows)


def convergence_reached(result: Result) -> str:
    """Return when each training reached each AP, and in what share of the epochs and seconds that dense needed."""
    found, paces = result["verdict"], result["seconds_per_epoch"]
    goal = statistics.fmean(rows[-1]["AP"] for rows in result["runs"]["dense"].values())
    rows = []
    for name, reached in found.items():
        cells = []
        for target, epoch in reached.items():
            dense = found["dense"][target]
            if epoch is None:
                cells.append("not reached")
            elif name == "dense":
                cells.append(f"epoch {epoch:.0f}")
            else:
                faster = dense * paces["dense"] / (epoch * paces[name.partition(",")[0]])
                cells.append(f"epoch {epoch:.0f}: 1/{dense / epoch:.1f} of the epochs, 1/{faster:.1f} of the time")
        rows.append((name, *cells))
    targets = [f"AP {goal:.3f}, dense's last" if target == "dense" else f"AP {target}" for target in found["dense"]]
    return table(("attention", *targets), rows)


def convergence_rates(result: Result) -> str:
    """Return the AP on validation scenes of each kind with each learning rate, and with the best two in full."""
    rates = [str(rate) for rate in result["recipe"]["rates"]]
    rows = []
    for kind, tries in result["validation_AP"].items():
        full = {rate: rows[-1]["validation_AP"] for rate, rows in result["in_full"][kind].items()}
        rows.append((kind, *(f"{tries[r]:.3f}" + (f", in full {full[r]:.3f}" if r in full else "") for r in rates)))
    return table(("attention", *(f"{float(rate):g}" for rate in rates)), rows)


def small_objects(result: Result) -> str:
    """Return the AP of objects by size at the end of the trainings."""
    rows = [
        (kind, *(_mean_and_range([runs[-1][name] for runs in seeds.values()]) for name in _SIZES))
        for kind, seeds in result["runs"].items()
    ]
    return table(("attention", *_SIZES.values()), rows)


def _mean_and_range(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} - {max(values):.3f})"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


_SIZES = {"AP<16": "below 16 x 16", "AP<32": "below 32 x 32", "AP32-96": "32 x 32 to 96 x 96", "AP": "all"}
_TREES = ("AP50", "AP", "AP75", "AR100")
TABLES: dict[str, Callable[[Result], str]] = {
    "setting": setting,
    "trees": trees,
    "cost": cost,
    "cost_times": cost_times,
    "cost_crossing": cost_crossing,
    "independence": independence,
    "convergence": convergence,
    "convergence_reached": convergence_reached,
    "convergence_rates": convergence_rates,
    "small_objects": small_objects,
}
