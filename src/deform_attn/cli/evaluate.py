"""The verb `evaluate`: COCO's metrics of a checkpoint."""

import argparse
from pathlib import Path

NAME, SUMMARY = "evaluate", "print COCO's metrics of a checkpoint"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("checkpoint", type=Path, help="folder that holds model.safetensors and config.json")
    verb.add_argument("--data", type=Path, required=True, help="folder with val.json and val/")


def run(options: argparse.Namespace) -> None:
    """Print the metrics on the validation split."""
    from deform_attn.detr.checkpoint import load_model
    from deform_attn.detr.data.coco import CocoFolder
    from deform_attn.detr.engine import evaluate_model
    from deform_attn.detr.evaluation import format_metrics

    detector = load_model(options.checkpoint)
    data = CocoFolder(options.data / "val.json", options.data / "val", max_size=detector.max_size)
    print(format_metrics(evaluate_model(detector, data)))
