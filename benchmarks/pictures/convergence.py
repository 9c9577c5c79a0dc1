"""Convergence: AP against epochs with dense and deformable attention, from the committed measurement."""

from pathlib import Path

from benchmarks import report
from benchmarks.evidence.plots import COLOURS
from benchmarks.pictures.canvas import canvas
from benchmarks.pictures.files import save_figure

KINDS = {"deformable": "deformable, two levels", "deformable_single_scale": "deformable, one level", "dense": "dense"}


def draw(path: Path) -> Path:
    """Draw a line for each seed of each kind, and return `path`."""
    measured = report.load("evidence-convergence")
    figure, (panel,) = canvas(3.6)
    for kind, label in KINDS.items():
        for seed, rows in measured["runs"][kind].items():
            x, y = [row["epoch"] for row in rows], [row["AP"] for row in rows]
            panel.plot(x, y, color=COLOURS[kind], linewidth=1.6, label=label if seed == "0" else None)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("epochs", fontsize=10)
    panel.set_ylabel("AP on test scenes", fontsize=10)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=10, frameon=False)
    return save_figure(figure, path)
