"""The verb `evaluate`: COCO's metrics of a checkpoint."""

import argparse
from pathlib import Path

from deform_attn.cli.common import CHECKPOINT_HELP, add_device, add_max_pixels, say, share

NAME, SUMMARY = "evaluate", "print COCO's metrics of a checkpoint"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    verb.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder with a validation split, in a layout that train reads",
    )
    verb.add_argument(
        "--hold-out",
        type=share,
        metavar="X",
        help="evaluate on the images that train held out: the same share as there (default: on the validation split)",
    )
    add_max_pixels(verb)
    add_device(verb)
    verb.add_argument(
        "--skip-bad", action="store_true", help="leave out images and boxes that cannot be used, and list them"
    )


def run(options: argparse.Namespace) -> None:
    """Print the metrics on the validation split."""
    from deform_attn.detr.checkpoints import starting
    from deform_attn.detr.data.base import check_categories
    from deform_attn.detr.data.coco import CocoFolder
    from deform_attn.detr.data.division import held_out
    from deform_attn.detr.data.objects import require_objects
    from deform_attn.detr.data.splits import Split
    from deform_attn.detr.device import choose_device
    from deform_attn.detr.evaluation.metrics import format_metrics
    from deform_attn.detr.training.validation import evaluate_model

    device = choose_device(options.device)
    detector = starting.load(options.checkpoint)
    detector.model.to(device)

    def read(split: Split) -> CocoFolder:
        data = CocoFolder(*split, max_size=detector.max_size, max_pixels=options.max_pixels, skip_bad=options.skip_bad)
        check_categories(data, detector.categories, str(split.annotations), f"the checkpoint {options.checkpoint}")
        return data

    data = held_out(options.data, options.hold_out or 0.0, read, say)
    require_objects(data, str(options.data), "hold out more (--hold-out)")
    print(format_metrics(evaluate_model(detector, data)))
