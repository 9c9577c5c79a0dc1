"""Distances: how far from its reference point each head of each layer reads, before and after training."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pictures.canvas import HEADS, canvas
from benchmarks.pictures.files import save_figure
from benchmarks.pictures.run import Run, look
from deform_attn.detr.model.detector import Detector

SCENES = 16


def draw(run: Run, path: Path) -> Path:
    """Draw a dot for each head of each layer, a ring where it began, and return `path`."""
    before, after = mean_distances(run.untrained()), mean_distances(run.trained())
    figure, (panel,) = canvas(3.6)
    heads = len(next(iter(after.values())))
    for head in range(heads):
        x = [layer + 0.17 * (head - (heads - 1) / 2) for layer in range(len(after))]
        began, ended = ([float(means[head]) for means in distances.values()] for distances in (before, after))
        panel.plot(x, began, "o", color="white", markeredgecolor=HEADS[head], markeredgewidth=1.6, markersize=7)
        panel.plot(x, ended, "o", color=HEADS[head], markeredgecolor="black", markersize=8, label=f"head {head}")
    panel.plot([], [], "o", color="white", markeredgecolor="black", markersize=7, label="before training")
    panel.set_xticks(range(len(after)), list(after), fontsize=9)
    panel.set_ylabel("mean distance, pixels of the image", fontsize=10)
    panel.set_ylim(bottom=0)
    panel.grid(axis="y", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False, ncols=3)
    return save_figure(figure, path)


def mean_distances(detector: Detector) -> dict[str, Tensor]:
    """Return for each layer by name the mean distance `[M]` of each head's points, weighted by attention, in pixels."""
    found: dict[str, list[Tensor]] = {}
    for index in range(SCENES):
        for layer in look(detector, index).layers:
            away = layer.locations - layer.references[:, 0, None, None, :2]  # [Q, M, T, 2]
            mean = (away.norm(dim=-1) * layer.weights).sum(-1).mean(0)  # [M]; the weights of a head sum to 1
            found.setdefault(layer.name, []).append(mean)
    return {name: torch.stack(means).mean(0) for name, means in found.items()}
