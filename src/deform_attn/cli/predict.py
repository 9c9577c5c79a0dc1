"""The verb `predict`: what a checkpoint finds in pictures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deform_attn.cli.common import CHECKPOINT_HELP, add_detecting, add_device, say

if TYPE_CHECKING:
    from deform_attn.detr.prediction.predict import AnyDetector

NAME, SUMMARY = "predict", "draw the detections of a checkpoint on images, and write them as COCO JSON"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument(
        "checkpoint", metavar="CHECKPOINT", help=f"{CHECKPOINT_HELP}. Or an ONNX file of deform-attn export"
    )
    verb.add_argument(
        "pictures",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="image, or folder of images (folders inside it are not searched)",
    )
    verb.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder to write the images and predictions.json to"
    )
    verb.add_argument(
        "--onnx",
        action="store_true",
        help="read the checkpoint as an ONNX file, for ONNX Runtime on the CPU (default: if its name ends in .onnx)",
    )
    add_detecting(verb, "shown")
    add_device(verb)
    verb.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, and list them")
    verb.set_defaults(fail=verb.error)


def run(options: argparse.Namespace) -> None:
    """Predict, and print what was written."""
    is_onnx = options.onnx or options.checkpoint.endswith(".onnx")
    if is_onnx and options.device is not None:
        return options.fail("argument --device: an ONNX file runs on the CPU; leave --device out")

    from deform_attn.detr.prediction.predict import find_pictures, predict
    from deform_attn.detr.training.progress import picture_bar

    pictures = find_pictures(options.pictures)
    detector = _read_onnx(options.checkpoint) if is_onnx else _load(options.checkpoint, options.device)
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
    if not found:
        say(f"no score is above --threshold {options.threshold}: lower it, or train longer")
    print(f"wrote {result.files[-1]}, and the images to the same folder")


def _load(checkpoint: str, device_name: str | None) -> "AnyDetector":
    """Return the detector of a checkpoint, on the device of this name or the default one."""
    from deform_attn.detr.checkpoints import starting
    from deform_attn.detr.device import choose_device

    device = choose_device(device_name)
    detector = starting.load(checkpoint)
    detector.model.to(device)
    return detector


def _read_onnx(file: str) -> "AnyDetector":
    from deform_attn.detr.prediction.onnx_file import read_onnx

    return read_onnx(file)
