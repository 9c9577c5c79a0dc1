"""The verb `explore`: a page that shows what a checkpoint attends to in a picture."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from deform_attn.cli.common import CHECKPOINT_HELP, add_detecting
from deform_attn.detr.config.detector import MAX_PIXELS

if TYPE_CHECKING:
    from deform_attn.explore import Scene

NAME, SUMMARY = "explore", "write a page that shows where a checkpoint looks in an image"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    verb.add_argument("picture", type=Path, metavar="IMAGE", help="image to look at")
    verb.add_argument(
        "--out",
        type=_page,
        metavar="FILE.html",
        help="file to write (default: the image's name with .html, in the current folder)",
    )
    add_detecting(verb, "listed")


def run(options: argparse.Namespace) -> None:
    """Write the page, and print what is on it."""
    from deform_attn.explore import write_page

    scene = read_scene(
        options.checkpoint,
        options.picture,
        threshold=options.threshold,
        max_size=options.max_size,
        max_pixels=options.max_pixels,
    )
    out = options.out or Path(f"{options.picture.stem}.html")
    write_page(scene, out, title=options.picture.name)
    print(f"objects found: {len(scene.detections)}, layers: {', '.join(layer.name for layer in scene.layers)}")
    print(f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


def read_scene(
    checkpoint: str | os.PathLike[str],
    picture: str | os.PathLike[str],
    *,
    threshold: float = 0.3,
    max_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> "Scene":
    """Return what the verb's page shows, for `plot_sampling`; the arguments are those of the verb."""
    from deform_attn.detr.checkpoints import starting
    from deform_attn.detr.prediction.attended import attend
    from deform_attn.explore import Detection, Scene

    detector = starting.load(checkpoint)
    seen = attend(detector, Path(picture), threshold=threshold, max_size=max_size, max_pixels=max_pixels)
    columns = (seen.queries, seen.found.boxes, seen.found.labels, seen.found.scores)
    detections = [
        Detection(query, (box[0], box[1], box[2], box[3]), detector.categories[label].name, certainty)
        for query, box, label, certainty in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return Scene(seen.picture, seen.records, detections, frame=seen.frame)


def _page(text: str) -> Path:
    """Return the path of a page, which no picture has."""
    if Path(text).suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .html, got {text!r}")
    return Path(text)
