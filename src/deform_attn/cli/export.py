"""The verb `export`: a checkpoint as a program of torch.export, or as a file of ONNX."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deform_attn.cli.common import CHECKPOINT_HELP, positive
from deform_attn.export.forms import FORMS

if TYPE_CHECKING:
    from deform_attn.detr.model.detector import Detector

NAME = "export"
SUMMARY = "write a checkpoint as a torch.export program or an ONNX file, and compare it with the model"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    verb.add_argument(
        "--out",
        type=_file,
        required=True,
        metavar="FILE",
        help="file to write: .pt2 for a torch.export program, .onnx for an ONNX file",
    )
    verb.add_argument(
        "--form",
        choices=list(FORMS),
        help="form of the attention in an ONNX file. For ONNX Runtime: gridsample, or native with the kernels of "
        "deform-attn. For OpenVINO: gridsample. For plugins: tensorrt, mmdeploy. For other runtimes: gather "
        "(default: gridsample)",
    )
    verb.add_argument(
        "--size", type=_size, metavar="HxW", help="height and width of images in pixels, such as 480x640 (default: any)"
    )
    verb.add_argument(
        "--batch", type=_batch, metavar="N", help="images per call, or free for any number (default: free)"
    )
    verb.set_defaults(fail=verb.error)


def run(options: argparse.Namespace) -> None:
    """Export, and print what was checked and how to use the file."""
    is_onnx = options.out.suffix == ".onnx"
    if options.form is not None and not is_onnx:
        return options.fail("argument --form: a form of ONNX needs --out with a name that ends in .onnx")

    from deform_attn.detr.checkpoints import starting

    detector = starting.load(options.checkpoint)
    print(f"exporting {options.checkpoint} to {options.out}", flush=True)
    (_write_onnx if is_onnx else _write_program)(detector, options)


def _write_program(detector: "Detector", options: argparse.Namespace) -> None:
    """Write a program of torch.export, and say how to use it."""
    from deform_attn.detr.prediction.export_model import export_model

    exported = export_model(detector, options.out, batch=options.batch, size=options.size, on_stage=_say_stage)
    tried, height, width = exported.tried
    print(f"wrote {options.out}, {_megabytes(options.out)}: {_taken(options)}")
    where = f"on {_images(tried)} of {height} x {width} pixels"
    print(f"checked: read back, it differs from the model by at most {exported.error:.1e} {where}")
    print("to use it, in Python:")
    print("    import torch, deform_attn")
    print(f"    logits, boxes = torch.export.load({str(options.out)!r}).module()(images, padding_mask)")


def _write_onnx(detector: "Detector", options: argparse.Namespace) -> None:
    """Write a file of ONNX, and say how to use it."""
    from deform_attn.detr.prediction.onnx_model import write_onnx

    form = options.form or "gridsample"
    exported = write_onnx(detector, options.out, form=form, batch=options.batch, size=options.size, on_stage=_say_stage)
    print(f"wrote {options.out}, {_megabytes(options.out)}: form {form}, {_taken(options)}")
    if exported.tried is None:
        print("checked: the graph and its nodes; ONNX Runtime runs this form with the operators of deform-attn only")
        return
    tried, _, height, width = exported.tried["images"]
    error = f"at most {exported.error:.1e} of the largest number"
    print(f"checked: ONNX Runtime differs from the model by {error} on {_images(tried)} of {height} x {width} pixels")
    print("to use it:")
    print(f"    deform-attn predict --onnx {options.out} IMAGE --out FOLDER")


def _say_stage(stage: str) -> None:
    print(f"{stage} ...", flush=True)  # it takes seconds to minutes


def _images(count: Any) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"


def _taken(options: argparse.Namespace) -> str:
    """Return in words what the file takes."""
    count = "any number of images" if options.batch is None else f"{_images(options.batch)} per call"
    size = "any size" if options.size is None else "{} x {} pixels".format(*options.size)
    return f"{count}, {size}"


def _file(text: str) -> Path:
    """Return the path of a file, whose suffix says what it is."""
    if not text.endswith((".pt2", ".onnx")):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .pt2 or .onnx, got {text!r}")
    return Path(text)


def _batch(text: str) -> int | None:
    return None if text == "free" else positive(text)


def _size(text: str) -> tuple[int, int]:
    """Return (H, W) of a text such as 480x640."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) > 0 and int(width) > 0):
        raise argparse.ArgumentTypeError(f"expected height x width in pixels, such as 480x640, got {text!r}")
    return int(height), int(width)
