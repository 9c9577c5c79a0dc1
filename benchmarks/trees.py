"""Trees: the compact detector trained from scratch on aerial photographs, once for each seed; told in docs/trees.md.

`python -m benchmarks.trees --data trees` runs the command of that page for each seed, writes
benchmarks/results/trees.json and draws the curves, what the first seed's detector finds in the validation strip, and
where one of its queries looks.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.evidence.results import IMAGES, write
from benchmarks.pictures.canvas import canvas
from benchmarks.pictures.files import save_figure
from benchmarks.pictures.narrow import draw_narrow
from deform_attn.detr.config.run import read_settings

NAME = "trees"
RECIPE = report.ROOT / "docs" / "trees.toml"
RUNS = Path("runs")


def build_parser() -> argparse.ArgumentParser:
    """Return what the command takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that benchmarks.trees_data makes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, which share the cores (default 1)")
    parser.add_argument("--draw", action="store_true", help="only draw, from the result and the runs that are there")
    return parser


def main() -> None:
    """Train, write and draw."""
    options = build_parser().parse_args()
    if not options.draw:
        threads = max((os.cpu_count() or 1) // options.jobs, 1)
        with ThreadPoolExecutor(options.jobs) as pool:
            trained = pool.map(lambda seed: train(options.data, seed, threads), options.seeds)
            rows = {str(seed): row for seed, row in zip(options.seeds, trained, strict=True)}
        recipe = read_settings(RECIPE)
        path = report.RESULTS / f"{NAME}.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        # Seeds may be trained one after the other, or on several days, as long as the recipe stays.
        seeds = before["seeds"] | rows if before.get("recipe") == recipe else rows
        write(NAME, {"recipe": recipe, "seeds": dict(sorted(seeds.items()))})
    measured = report.load(NAME)
    seed = min(measured["seeds"], key=int)
    print(f"drew {draw_curves(measured)}, {draw_strip(options.data, seed)} and {draw_sampling(options.data, seed)}")


def train(data: Path, seed: int, threads: int) -> dict[str, Any]:
    """Train one detector by the command, and return its seconds, start and evaluation included, and its figures."""
    out = RUNS / f"trees-{seed}"
    command = [sys.executable, "-m", "deform_attn", "train", "--config", str(RECIPE), "--data", str(data)]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--seed", str(seed), "--out", str(out), "--overwrite"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        check=True,
    )
    seconds = time.perf_counter() - start
    with open(out / "metrics.csv", encoding="utf-8") as lines:
        history = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(lines)]
    kept = ("epoch", "loss", "AP", "AP50", "AP75", "AR100")
    rows = [{name: round(row[name], 4) for name in kept} for row in history]
    return {"threads": threads, "seconds": round(seconds), **rows[-1], "history": rows}


def draw_curves(measured: Mapping[str, Any], path: Path = IMAGES / "trees-curve.png") -> Path:
    """Draw loss and AP50 of each seed against the epoch, and return `path`."""
    figure, panels = canvas(5.6, 2)
    shown = (("loss", "training loss"), ("AP50", "AP50 on the validation strip"))
    for axes, (name, label) in zip(panels, shown, strict=True):
        for seed, row in measured["seeds"].items():
            epochs, values = ([record[key] for record in row["history"]] for key in ("epoch", name))
            axes.plot(epochs, values, linewidth=1.2, label=f"seed {seed}: {row[name]:.2f} at the end")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9, frameon=False)
    return save_figure(figure, path)


def draw_strip(data: Path, seed: str, path: Path = IMAGES / "trees-detections.png") -> Path:
    """Draw what the detector of `seed` finds in two tiles of the strip, and return `path`."""
    from deform_attn.detr.checkpoints import starting
    from deform_attn.detr.data.batch import collate
    from deform_attn.detr.data.coco import CocoFolder
    from deform_attn.detr.model.detections import Detections

    detector = starting.load(str(RUNS / f"trees-{seed}"))
    tiles = CocoFolder(data / "val.json", data / "val", max_size=detector.max_size)
    whole = CocoFolder(data / "val.json", data / "val")
    chosen = range(0, len(tiles), 4)  # of the left column; the right one shows much of the same again
    found = detector.model.detect(collate([tiles[i] for i in chosen]))
    images, truths = [whole[i].image for i in chosen], [Detections.of_sample(whole[i]) for i in chosen]
    return draw_narrow(images, found, truths, detector.categories, path, min_score=0.4)


def draw_sampling(data: Path, seed: str, path: Path = IMAGES / "attention.png") -> Path:
    """Draw where the query of the most certain detection in the middle of the strip looks, and return `path`."""
    from deform_attn.cli.explore import read_scene
    from deform_attn.explore import plot_sampling

    tiles = json.loads((data / "val.json").read_text(encoding="utf-8"))["images"]
    scene = read_scene(RUNS / f"trees-{seed}", data / "val" / tiles[len(tiles) // 2]["file_name"])
    return save_figure(plot_sampling(scene, detection=0, zoom=True), path)


if __name__ == "__main__":
    main()
