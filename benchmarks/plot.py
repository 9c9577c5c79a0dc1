"""The plot of ratios: how many times our time each rival takes, one group of bars a case."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cases import CANONICAL
from benchmarks.peers import PEERS

IMAGE = Path(__file__).parent.parent / "docs" / "images" / "benchmark.png"
COLOURS = {
    "eager": "#4c72b0",
    "compile": "#9fb6d9",
    "onnxruntime": "#dd8452",
    "openvino": "#c2a55a",
    "torch-ms-deform-attn": "#55a868",
}


def draw(result: Mapping[str, Any], path: Path = IMAGE) -> Path:
    """Draw `result` into `path` and return it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [(f"{case.name}\nforward", "forward", case.name) for case in CANONICAL]
    groups += [(f"{name}\nboth ways", "training", name) for name in ("enc640", "dec300")]
    groups = [group for group in groups if group[2] in result.get(group[1], {})]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = set()
    for place, (_, section, case) in enumerate(groups):
        times = result[section][case]["times"]
        present = [peer for peer in PEERS if "ratio" in times.get(peer.name, {})]
        width = 0.86 / len(PEERS)
        for index, peer in enumerate(present):
            ratio = times[peer.name]["ratio"]
            low, high = times[peer.name]["ratio_quartiles"]
            x = place + (index - (len(present) - 1) / 2) * width
            label = None if peer.name in drawn else peer.label
            drawn.add(peer.name)
            error = [[max(0, ratio - low)], [max(0, high - ratio)]]
            axes.bar(x, ratio, width * 0.92, color=COLOURS[peer.name], label=label, yerr=error, ecolor="#444444")
            text = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
            axes.text(x, max(ratio, high) * 1.06, text, ha="center", va="bottom", fontsize=8)
    axes.axhline(1, color="black", linewidth=1)
    axes.text(-0.55, 1.04, "ours", fontsize=9, va="bottom")
    axes.set_yscale("log")
    axes.set_ylim(0.8, axes.get_ylim()[1] * 1.6)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_xticks(range(len(groups)), [label for label, _, _ in groups])
    axes.set_yticks([1, 2, 5, 10, 20, 50, 100, 200], ["1x", "2x", "5x", "10x", "20x", "50x", "100x", "200x"])
    axes.minorticks_off()
    axes.set_ylabel("time of the rival / our time")
    here = result["machine"]
    axes.set_title(
        f"{here['processor']}, {result['threads']} threads, float32: medians, with the quartiles of each round's ratio",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=5, fontsize=9, frameon=False, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
