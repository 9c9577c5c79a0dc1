"""The plots of the evidence, drawn from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.evidence.results import IMAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"deformable": "#0b6e4f", "dense": "#c0392b", "dense, whole matrix": "#e59866", "window": "#0b6e4f"}
COLOURS |= {"deformable_single_scale": "#58b368", "spread": "#58b368", "grid_sample": "#4c72b0"}
COLOURS |= {"dense, short": "#e59866", "deformable, long": "#0b6e4f"}
LINES = {"deformable_single_scale": "--", "dense, short": ":", "deformable, long": ":"}  # told apart without colours
COLOURS |= {"deformable, grid_sample": "#4c72b0"}
MARKERS = {"dense, whole matrix": "s", "spread": "s", "grid_sample": "^", "deformable, grid_sample": "^"}


def draw_cost(measured: Mapping[str, Any], path: Path | None = None) -> Path:
    """Draw time and memory of the forward pass against the side, and return `path`."""
    path = IMAGES / "evidence-cost.png" if path is None else path
    figure, (time, memory) = _figure(2)
    exponents, fitted_from = measured["exponents"], measured["fitted_from"]
    for axes, what, unit, label in (
        (time, "seconds", 1.0, "seconds"),
        (memory, "peak_bytes", 1e-6, "peak memory beside the input, MB"),
    ):
        for kind, points in measured[what]["forward"].items():
            fitted = exponents[what]["forward"][kind].get("large")
            text = kind if fitted is None else f"{kind}: side^{fitted:.1f}"
            _line(axes, kind, {int(side): unit * value for side, value in points.items()}, text)
        _sides(axes, [int(side) for side in measured[what]["forward"]["deformable"]])
        axes.set_xlabel("side of the picture, pixels (features at stride 8)")
        axes.set_ylabel(label)
    time.set_title("one encoder layer's attention, forward", fontsize=10)
    memory.set_title(f"exponents are fitted from side {fitted_from} on", fontsize=10)
    return _save(figure, path)


def draw_independence(measured: Mapping[str, Any], path: Path | None = None) -> Path:
    """Draw the time of a fixed number of queries against the side of the map, and return `path`."""
    path = IMAGES / "evidence-independence.png" if path is None else path
    figure, (axes,) = _figure(1)
    labels = {
        "window": "deformable, the same pixels read",
        "spread": "deformable, spread over the map",
        "grid_sample": "torch's grid_sample, spread",
        "dense": "dense (scaled_dot_product_attention)",
    }
    for kind, text in labels.items():
        points = measured["milliseconds"][kind]
        _line(axes, kind, {int(side): value for side, value in points.items()}, text)
    _sides(axes, [int(side) for side in measured["milliseconds"]["window"]])
    axes.set_xlabel("side of the map, pixels")
    axes.set_ylabel("milliseconds")
    axes.set_title(f"{measured['queries']} queries, one map", fontsize=10)
    return _save(figure, path)


def draw_convergence(found: Mapping[str, Any], path: Path | None = None) -> Path:
    """Draw AP on test scenes against epochs and seconds, and that of small digits, a line a seed, and return `path`."""
    path = IMAGES / "evidence-convergence.png" if path is None else path
    figure, panels = _figure(3)
    shown = (("AP", "epoch"), ("AP", "seconds"), ("AP<16", "epoch"))
    for axes, (metric, what) in zip(panels, shown, strict=True):
        axes.set_yscale("linear")
        axes.set_xlabel({"epoch": "epochs", "seconds": "seconds of training"}[what])
        axes.set_ylabel({"AP": "AP on test scenes", "AP<16": "AP of digits below 16 x 16 pixels"}[metric])
        for name, seeds in found["runs"].items():
            pace = found["seconds_per_epoch"][name.partition(",")[0]] if what == "seconds" else 1
            for seed, rows in seeds.items():
                label = name.replace("_", " ") if seed == min(seeds, key=int) else None
                x, y = [pace * row["epoch"] for row in rows], [row[metric] for row in rows]
                axes.plot(x, y, LINES.get(name, "-"), color=COLOURS[name], label=label, linewidth=1.2)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(fontsize=8, frameon=False)
    return _save(figure, path)


def _figure(panels: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * panels + 0.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for panel in axes:
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(axes: "Axes", kind: str, points: Mapping[int, float], label: str) -> None:
    sides = list(points)
    axes.plot(sides, [points[side] for side in sides], MARKERS.get(kind, "o") + "-", color=COLOURS[kind], label=label)
    axes.legend(fontsize=8, frameon=False)


def _sides(axes: "Axes", sides: list[int]) -> None:
    axes.set_xticks(sides, [str(side) for side in sides], fontsize=8, rotation=45)
    axes.minorticks_off()


def _save(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
