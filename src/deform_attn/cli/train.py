"""The verb `train`: a detector from pictures in COCO format."""

import argparse
from pathlib import Path

from deform_attn.cli.common import add_restart, positive, say_if_anew

NAME, SUMMARY = "train", "train a detector on pictures in COCO format"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("--data", type=Path, required=True, help="folder with train.json, train/, val.json and val/")
    verb.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    verb.add_argument("--epochs", type=positive, default=50, help="passes over the pictures (default: %(default)s)")
    verb.add_argument("--batch-size", type=positive, default=8, help="pictures a step (default: %(default)s)")
    verb.add_argument("--queries", type=positive, default=100, help="most objects in a picture (default: %(default)s)")
    verb.add_argument("--max-size", type=positive, help="scale larger pictures to this longer side, in pixels")
    verb.add_argument("--seed", type=int, default=0, help="of the order and the weights (default: %(default)s)")
    add_restart(verb)


def run(options: argparse.Namespace) -> None:
    """Train, and print the metrics of the last epoch."""
    import torch

    from deform_attn.detr.checkpoint import Detector
    from deform_attn.detr.config import ModelConfig, TrainConfig, TransformerConfig
    from deform_attn.detr.data.coco import CocoFolder
    from deform_attn.detr.engine import fit
    from deform_attn.detr.evaluation import format_metrics
    from deform_attn.detr.model import build_model
    from deform_attn.detr.progress import progress_bar

    data, validation = (
        CocoFolder(options.data / f"{split}.json", options.data / split, max_size=options.max_size)
        for split in ("train", "val")
    )
    transformer = TransformerConfig(num_queries=options.queries)
    config = TrainConfig(epochs=options.epochs, batch_size=options.batch_size, seed=options.seed)
    torch.manual_seed(config.seed)
    model = build_model(ModelConfig(num_classes=len(data.categories), transformer=transformer))
    detector = Detector(model, data.categories, options.max_size)
    say_if_anew(options.resume, options.out)
    with progress_bar() as on_step:
        history = fit(
            detector,
            data,
            config,
            options.out,
            validation=validation,
            resume=options.resume,
            overwrite=options.overwrite,
            on_step=on_step,
        )
    print(format_metrics({name: number for name, number in history[-1].items() if name.startswith(("AP", "AR"))}))
    print(f"checkpoint: {options.out}")
