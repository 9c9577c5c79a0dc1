"""The verb `train`: a detector from images in COCO format."""

import argparse
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, get_args

from deform_attn.cli.common import (
    MAX_PIXELS_HELP,
    add_device,
    add_restart,
    is_main,
    positive,
    say,
    say_finished,
    say_if_anew,
    share,
)
from deform_attn.detr.config.detector import Precision
from deform_attn.detr.config.run import Settings, merged, read_settings
from deform_attn.detr.errors import printable

NAME, SUMMARY = "train", "train a detector on images in COCO format"


class Flag(NamedTuple):
    """A flag for the setting `path`, the names of its tables and its own; `help` is without the settings' default."""

    name: str
    path: tuple[str, ...]
    kind: Callable[[str], Any]
    help: str
    choices: Sequence[str] | None = None
    metavar: str = "CHECKPOINT"


FLAGS = (
    Flag(
        "--data",
        ("data", "dir"),
        str,
        "folder with train.json, train/, val.json, val/, or in the layout of COCO, Roboflow or one COCO JSON",
        metavar="FOLDER",
    ),
    Flag(
        "--hold-out",
        ("data", "hold_out"),
        share,
        "share of the images, such as 0.1, to validate on if there is no validation split (default: none)",
    ),
    Flag("--epochs", ("train", "epochs"), positive, "passes over all training images"),
    Flag("--batch-size", ("train", "batch_size"), positive, "images per training step, in each process"),
    Flag("--lr", ("train", "lr"), float, "learning rate after the warm-up"),
    Flag(
        "--max-size",
        ("data", "max_size"),
        positive,
        "longer side, in pixels, to which larger images are scaled down (default: that of --from, or not at all)",
    ),
    Flag("--max-pixels", ("data", "max_pixels"), positive, MAX_PIXELS_HELP),
    Flag("--queries", ("model", "transformer", "num_queries"), positive, "maximum detections per image"),
    Flag("--seed", ("train", "seed"), int, "random seed of the image order and the weights"),
    Flag(
        "--precision",
        ("train", "precision"),
        str,
        "precision of the forward pass; float16 needs a CUDA GPU",
        get_args(Precision),
    ),
    Flag("--workers", ("train", "workers"), int, "more processes that load images in advance; 0: none"),
    Flag(
        "--save-every",
        ("train", "save_every"),
        int,
        "write a checkpoint every N steps within an epoch, too; 0: only at its end",
    ),
    Flag(
        "--from",
        ("start",),
        str,
        "starting weights: folder of a checkpoint, or the name of a model in the Hugging Face cache on this disk "
        "(default: random weights)",
    ),
    Flag(
        "--backbone",
        ("model", "backbone", "source"),
        str,
        "backbone of Hugging Face transformers with its weights: a folder, or a model in the cache on this disk. "
        "Example: microsoft/resnet-18 (default: a small backbone with random weights)",
        metavar="BACKBONE",
    ),
)


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("--out", type=Path, metavar="FOLDER", help="folder to write the checkpoint to")
    verb.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings; options override it")
    verb.add_argument("--print-config", action="store_true", help="print all settings as a TOML file and exit")
    defaults = Settings.from_layers().to_dict()
    for flag in FLAGS:
        default = reduce(lambda table, name: table[name], flag.path, defaults)
        said = "" if default is None or "(default: " in flag.help else f" (default: {default})"
        metavar = (
            None if flag.choices else {positive: "N", int: "N", float: "X", share: "X"}.get(flag.kind, flag.metavar)
        )
        kind, choices = flag.kind, flag.choices
        verb.add_argument(flag.name, dest=flag.name, type=kind, choices=choices, metavar=metavar, help=flag.help + said)
    verb.add_argument(
        "--tensorboard", action="store_true", help="write TensorBoard events to the folder tensorboard in --out"
    )
    verb.add_argument(
        "--skip-bad", action="store_true", help="leave out images and boxes that cannot be used, and list them"
    )
    add_device(verb)
    add_restart(verb)
    verb.set_defaults(fail=verb.error)


def run(options: argparse.Namespace) -> None:
    """Train, and print the metrics of the last epoch."""
    settings = _settings(options)
    if options.print_config:
        print(settings.to_toml(), end="")
        return
    if options.out is None or settings.data.dir is None:
        missing = "--out" if options.out is None else "--data (or dir in the table data of the config file)"
        return options.fail(f"the following arguments are required: {missing}")

    from deform_attn.detr.device import choose_device
    from deform_attn.detr.evaluation.metrics import format_metrics
    from deform_attn.detr.training.progress import progress_bar
    from deform_attn.detr.training.run import prepare

    device = choose_device(options.device)
    begun = prepare(settings, skip_bad=options.skip_bad, on_remark=say if is_main() else None)
    if is_main():
        if begun.start is not None:
            print(f"starting weights: {settings.start}; {begun.start}")
            size = begun.detector.max_size
            if settings.data.max_size is None and size is not None:
                print(
                    f"longer side of images: {size} pixels at most, as in the starting weights; --max-size overrides it"
                )
        say_if_anew(options.resume, options.out)
    names = ", ".join(printable(category.name, 80) for category in begun.data.categories)
    with progress_bar(f"images: {len(begun.data)}, categories: {names:.200}") as shown:
        history = begun.train(
            options.out,
            resume=options.resume,
            overwrite=options.overwrite,
            on_step=shown.on_step,
            on_epoch=shown.on_epoch,
            tensorboard=options.tensorboard,
            device=device,
        )
    if not is_main():
        return
    if not shown.steps:
        more = f"to train further, start from its weights: --from {options.out}, with another --out, and --epochs"
        say_finished(options.out, len(history), more)
    last = history[-1]
    if begun.validation is not None:
        print(format_metrics({name: number for name, number in last.items() if name.startswith(("AP", "AR"))}))
    else:
        print(f"loss {last['loss']:.3f} in epoch {len(history)}")
    print(f"checkpoint: {options.out}")


def _settings(options: argparse.Namespace) -> Settings:
    """Return the defaults, over them the file, over it the flags."""
    layers = [{}] if options.config is None else [read_settings(options.config)]
    for flag in FLAGS:
        value = getattr(options, flag.name)
        if value is not None:
            layers.append(reduce(lambda inner, name: {name: inner}, reversed(flag.path), value))
    if getattr(options, "--backbone") is not None:
        layers.append({"model": {"backbone": {"name": "transformers"}}})
    return Settings.from_layers(merged(*layers))
