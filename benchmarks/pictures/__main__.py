"""The command that draws pictures of the gallery: `python -m benchmarks.pictures NAME... --run runs/demo`."""

import argparse
from pathlib import Path

from benchmarks import report, trees
from benchmarks.evidence.results import IMAGES
from benchmarks.pictures import convergence, detections, distances, heads, layers, levels, training
from benchmarks.pictures.run import Run

OF_A_RUN = {
    "detections": detections.draw,
    "layers": layers.draw,
    "levels": levels.draw,
    "training": training.draw,
    "heads": heads.draw,
    "distances": distances.draw,
}
OF_RESULTS = {
    "convergence": convergence.draw,
    "trees-curve": lambda path: trees.draw_curves(report.load(trees.NAME), path),
}


def build_parser() -> argparse.ArgumentParser:
    """Return what the command takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description="draw pictures of the gallery")
    parser.add_argument("names", nargs="+", choices=[*OF_A_RUN, *OF_RESULTS], metavar="NAME", help="picture to draw")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of the demo (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder to write to (default: docs/images)")
    return parser


def main() -> None:
    """Draw what is named."""
    options = build_parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        path = options.out / f"{name}.png"
        drawn = OF_RESULTS[name](path) if name in OF_RESULTS else OF_A_RUN[name](Run(options.run), path)
        print(f"drew {drawn}, {drawn.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
