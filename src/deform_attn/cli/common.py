"""What several verbs share: kinds of numbers, the flags of a training's folder, and lines on the error stream."""

import argparse
import os
import sys
from pathlib import Path

from deform_attn.detr.config.detector import MAX_PIXELS

MAX_PIXELS_HELP = "largest image to read, width times height in pixels; a larger one is an error"
CHECKPOINT_HELP = "checkpoint: folder that train wrote, or the name of a model in the Hugging Face cache on this disk"


def say(line: str) -> None:
    """Print `line` on the standard error stream, after the command's name."""
    print(f"deform-attn: {line}", file=sys.stderr)


def is_main() -> bool:
    """Return whether this process speaks for all that `accelerate launch` or `torchrun` have started together."""
    return os.environ.get("RANK", "0") == "0"


def share(text: str) -> float:
    """Return the number above 0 and below 1 that `text` is."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, got {text!r}")
    return number


def positive(text: str) -> int:
    """Return the whole number above zero that `text` is."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above zero, got {text!r}")
    return number


def score(text: str) -> float:
    """Return the score in [0, 1] that `text` is."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return number


def add_detecting(verb: argparse.ArgumentParser, what: str) -> None:
    """Add the flags of a verb that detects: the smallest score of `what`, and the size of the pictures."""
    verb.add_argument(
        "--threshold",
        type=score,
        default=0.3,
        metavar="X",
        help=f"lowest score, from 0 to 1, of a box that is {what} (default: %(default)s)",
    )
    verb.add_argument(
        "--max-size",
        type=positive,
        metavar="N",
        help="longer side, in pixels, to which larger images are scaled down (default: that of the training)",
    )
    add_max_pixels(verb)


def add_max_pixels(verb: argparse.ArgumentParser) -> None:
    """Add the limit on the size of the pictures."""
    verb.add_argument(
        "--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help=f"{MAX_PIXELS_HELP} (default: %(default)s)"
    )


def add_device(verb: argparse.ArgumentParser) -> None:
    """Add the choice of a device."""
    verb.add_argument(
        "--device",
        metavar="NAME",
        help="device to run on: cpu, cuda, cuda:1 or mps (default: cuda if available, otherwise cpu)",
    )


def add_restart(verb: argparse.ArgumentParser) -> None:
    """Add the two ways to begin where there is a training already."""
    ways = verb.add_mutually_exclusive_group()
    ways.add_argument(
        "--resume", action="store_true", help="continue the training in --out with the same options, or begin"
    )
    ways.add_argument("--overwrite", action="store_true", help="replace the training in --out")


def say_if_anew(resume: bool, folder: Path) -> None:
    """Say that a training begins where one was to go on and there is none."""
    from deform_attn.detr.checkpoints import checkpoint

    if resume and not checkpoint.exists(folder):
        say(f"{folder} holds no training yet; a new one begins")


def say_finished(folder: Path, epochs: int, advice: str) -> None:
    """Say that there was nothing left to train of the training in `folder`, and what to do for more."""
    count = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    say(f"{folder}: this training has finished, after {count}; {advice}")
