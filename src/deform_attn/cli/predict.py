"""The verb `predict`: what a checkpoint finds in pictures."""

import argparse
from pathlib import Path

from deform_attn.cli.common import CHECKPOINT_HELP, add_detecting, add_device, say

NAME, SUMMARY = "predict", "draw what a checkpoint finds in pictures, and write it as COCO json"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("checkpoint", help=CHECKPOINT_HELP)
    verb.add_argument("pictures", nargs="+", type=Path, metavar="IMAGE", help="picture, or folder of pictures")
    verb.add_argument("--out", type=Path, required=True, help="folder to write pictures and predictions.json to")
    add_detecting(verb, "shown")
    add_device(verb)
    verb.add_argument("--skip-bad", action="store_true", help="skip images that cannot be read, and list them")


def run(options: argparse.Namespace) -> None:
    """Predict, and print what was written."""
    from deform_attn.detr.checkpoints import starting
    from deform_attn.detr.device import choose_device
    from deform_attn.detr.prediction.predict import find_pictures, predict
    from deform_attn.detr.training.progress import picture_bar

    device = choose_device(options.device)
    pictures = find_pictures(options.pictures)
    detector = starting.load(options.checkpoint)
    detector.model.to(device)
    with picture_bar() as on_picture:
        result = predict(
            detector,
            pictures,
            options.out,
            threshold=options.threshold,
            max_size=options.max_size,
            max_pixels=options.max_pixels,
            skip_bad=options.skip_bad,
            on_picture=on_picture,
        )
    for reason in result.skipped:
        say(f"skipped: {reason}")
    found = len(result.coco["annotations"])
    print(f"images: {len(result.coco['images'])}, objects found: {found}, images skipped: {len(result.skipped)}")
    print(f"wrote {result.files[-1]}, and the images beside it")
