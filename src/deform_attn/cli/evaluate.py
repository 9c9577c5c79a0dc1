"""The verb `evaluate`: COCO's metrics of a checkpoint."""

import argparse
from pathlib import Path

from deform_attn.cli.common import CHECKPOINT_HELP

NAME, SUMMARY = "evaluate", "print COCO's metrics of a checkpoint"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("checkpoint", help=CHECKPOINT_HELP)
    verb.add_argument("--data", type=Path, required=True, help="folder with a val split, laid out as for train")


def run(options: argparse.Namespace) -> None:
    """Print the metrics on the validation split."""
    from deform_attn.detr import starting
    from deform_attn.detr.data.coco import CocoFolder
    from deform_attn.detr.data.splits import required_split
    from deform_attn.detr.engine import evaluate_model
    from deform_attn.detr.evaluation import format_metrics

    detector = starting.load(options.checkpoint)
    data = CocoFolder(*required_split(options.data, "val"), max_size=detector.max_size)
    print(format_metrics(evaluate_model(detector, data)))
