"""The verb `export`: a checkpoint as a program of torch.export."""

import argparse
from pathlib import Path

from deform_attn.cli.common import CHECKPOINT_HELP, positive

NAME, SUMMARY = "export", "write a checkpoint as a program of torch.export, and check it against the model"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("checkpoint", help=CHECKPOINT_HELP)
    verb.add_argument("--out", type=_program, required=True, metavar="FILE.pt2", help="file to write")
    verb.add_argument("--size", type=_size, metavar="HxW", help="height and width in pixels (default: any)")
    verb.add_argument("--batch", type=_batch, metavar="N", help="pictures a call (default: free, that is, any number)")


def run(options: argparse.Namespace) -> None:
    """Export, and print what was checked and how to use the file."""
    from deform_attn.detr.checkpoints import starting
    from deform_attn.detr.prediction.export_model import export_model

    detector = starting.load(options.checkpoint)
    print(f"exporting {options.checkpoint}, and trying the file", flush=True)  # it takes a while
    exported = export_model(detector, options.out, batch=options.batch, size=options.size)
    tried, height, width = exported.tried
    count = "any number of pictures" if exported.batch is None else f"{exported.batch} pictures a call"
    size = "any size" if exported.size is None else "{} x {} pixels".format(*exported.size)
    print(f"wrote {options.out}: {count}, {size}")
    where = f"on {tried} pictures of {height} x {width}"
    print(f"checked: read back, it differs from the model by at most {exported.error:.1e} {where}")
    print("to use it, in Python:")
    print("    import torch, deform_attn")
    print(f"    logits, boxes = torch.export.load({str(options.out)!r}).module()(images, padding_mask)")


def _program(text: str) -> Path:
    """Return the path of a file that torch.export writes."""
    if not text.endswith(".pt2"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .pt2, got {text!r}")
    return Path(text)


def _batch(text: str) -> int | None:
    return None if text == "free" else positive(text)


def _size(text: str) -> tuple[int, int]:
    """Return (H, W) of a text such as 480x640."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) > 0 and int(width) > 0):
        raise argparse.ArgumentTypeError(f"expected height x width in pixels, such as 480x640, got {text!r}")
    return int(height), int(width)
