"""The verb `evaluate`: COCO's metrics of a checkpoint."""

import argparse
from pathlib import Path

from deform_attn.cli.common import CHECKPOINT_HELP, add_max_pixels, say, say_of, share

NAME, SUMMARY = "evaluate", "print COCO's metrics of a checkpoint"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("checkpoint", help=CHECKPOINT_HELP)
    verb.add_argument("--data", type=Path, required=True, help="folder with a val split, laid out as for train")
    verb.add_argument(
        "--hold-out", type=share, metavar="X", help="evaluate on what train held out of the train split, the same share"
    )
    add_max_pixels(verb)
    verb.add_argument("--skip-bad", action="store_true", help="leave out records that cannot be used, and list them")


def run(options: argparse.Namespace) -> None:
    """Print the metrics on the validation split."""
    from deform_attn.detr.checkpoints import starting
    from deform_attn.detr.data.coco import CocoFolder
    from deform_attn.detr.data.holdout import hold_out
    from deform_attn.detr.data.objects import require_objects
    from deform_attn.detr.data.splits import find_split, required_split
    from deform_attn.detr.evaluation.metrics import format_metrics
    from deform_attn.detr.training.validation import evaluate_model

    detector = starting.load(options.checkpoint)
    held_out = options.hold_out
    if held_out and find_split(options.data, "val") is not None:  # `train` held nothing out then
        say(f"{options.data}: there is a val split, so nothing is held out of the train split")
        held_out = None
    split = required_split(options.data, "train" if held_out else "val")
    folder = CocoFolder(*split, max_size=detector.max_size, max_pixels=options.max_pixels, skip_bad=options.skip_bad)
    say_of(folder)
    data = hold_out(folder, held_out)[1] if held_out else folder
    require_objects(data, str(options.data), "hold out more (--hold-out)")
    print(format_metrics(evaluate_model(detector, data)))
