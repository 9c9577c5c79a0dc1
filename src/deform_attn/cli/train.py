"""The verb `train`: a detector from pictures in COCO format."""

import argparse
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from deform_attn.cli.common import MAX_PIXELS_HELP, add_restart, is_main, positive, say, say_if_anew, say_of, share
from deform_attn.detr.config.detector import Precision
from deform_attn.detr.config.run import Settings, merged, read_settings
from deform_attn.detr.errors import printable

if TYPE_CHECKING:
    from deform_attn.detr.data.base import DetectionData
    from deform_attn.detr.model.detector import Detector

NAME, SUMMARY = "train", "train a detector on pictures in COCO format"


class Flag(NamedTuple):
    """A flag for the setting `path`, the names of its tables and its own; `help` is without the default."""

    name: str
    path: tuple[str, ...]
    kind: Callable[[str], Any]
    help: str
    choices: Sequence[str] | None = None


FLAGS = (
    Flag(
        "--data",
        ("data", "dir"),
        str,
        "folder with train.json, train/, val.json, val/, or laid out as COCO or Roboflow do, or with one COCO json",
    ),
    Flag("--hold-out", ("data", "hold_out"), share, "share of the pictures to validate on if there is no val split"),
    Flag("--epochs", ("train", "epochs"), positive, "passes over the pictures"),
    Flag("--batch-size", ("train", "batch_size"), positive, "pictures a step"),
    Flag("--lr", ("train", "lr"), float, "learning rate, reached after the warm-up"),
    Flag("--max-size", ("data", "max_size"), positive, "scale larger pictures to this longer side, in pixels"),
    Flag("--max-pixels", ("data", "max_pixels"), positive, MAX_PIXELS_HELP),
    Flag("--queries", ("model", "transformer", "num_queries"), positive, "most objects in a picture"),
    Flag("--seed", ("train", "seed"), int, "of the order and the weights"),
    Flag("--precision", ("train", "precision"), str, "of the forward pass", get_args(Precision)),
    Flag("--workers", ("train", "workers"), int, "processes that prepare batches ahead, 0 for none"),
    Flag("--save-every", ("train", "save_every"), int, "steps between checkpoints within an epoch, 0 for none"),
    Flag("--from", ("start",), str, "starting weights: a checkpoint's folder, or a hub id in the cache on this disk"),
    Flag(
        "--backbone",
        ("model", "backbone", "source"),
        str,
        "backbone of transformers with its weights: a folder, or a hub id in the cache on this disk",
    ),
)


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument("--out", type=Path, help="folder to write the checkpoint to")
    verb.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings, over which flags win")
    verb.add_argument("--print-config", action="store_true", help="print all settings as such a file, and stop there")
    defaults = Settings.from_layers().to_dict()
    for flag in FLAGS:
        default = reduce(lambda table, name: table[name], flag.path, defaults)
        said = "" if default is None else f" (default: {default})"
        metavar = None if flag.choices else {positive: "N", int: "N", float: "X", share: "X"}.get(flag.kind, "WHERE")
        kind, choices = flag.kind, flag.choices
        verb.add_argument(flag.name, dest=flag.name, type=kind, choices=choices, metavar=metavar, help=flag.help + said)
    verb.add_argument("--tensorboard", action="store_true", help="write events for TensorBoard beside the checkpoint")
    verb.add_argument("--skip-bad", action="store_true", help="leave out records that cannot be used, and list them")
    add_restart(verb)
    verb.set_defaults(fail=verb.error)


def run(options: argparse.Namespace) -> None:
    """Train, and print the metrics of the last epoch."""
    settings = _settings(options)
    if options.print_config:
        print(settings.to_toml(), end="")
        return
    folder = settings.data.dir
    if options.out is None or folder is None:
        missing = "--out" if options.out is None else "--data (or dir in the table data of the config file)"
        return options.fail(f"the following arguments are required: {missing}")

    from deform_attn.detr.evaluation.metrics import format_metrics
    from deform_attn.detr.training.engine import fit
    from deform_attn.detr.training.progress import progress_bar

    detector, data, validation = _prepare(settings, Path(folder), options.skip_bad)
    if is_main():
        say_if_anew(options.resume, options.out)
    names = ", ".join(printable(category.name, 80) for category in data.categories)
    with progress_bar(f"images: {len(data)}, categories: {names:.200}") as on_step:
        history = fit(
            detector,
            data,
            settings.train,
            options.out,
            validation=validation,
            resume=options.resume,
            overwrite=options.overwrite,
            on_step=on_step,
            tensorboard=options.tensorboard,
        )
    if not is_main():
        return
    last = history[-1]
    if validation is not None:
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


def _prepare(
    settings: Settings, folder: Path, skip_bad: bool
) -> "tuple[Detector, DetectionData, DetectionData | None]":
    """Return the detector at its start, what it is trained on and what it is evaluated on; say what it starts from."""
    import torch

    from deform_attn.detr.checkpoints import starting
    from deform_attn.detr.data.coco import CocoFolder
    from deform_attn.detr.data.holdout import hold_out
    from deform_attn.detr.data.splits import find_split, looked_for, required_split
    from deform_attn.detr.model.detector import Detector

    split, validation_split = required_split(folder, "train"), find_split(folder, "val")
    before = None if settings.start is None else starting.load(settings.start)
    max_size, held_share = settings.data.max_size or (before.max_size if before else None), settings.data.hold_out
    max_pixels = settings.data.max_pixels
    whole = CocoFolder(*split, max_size=max_size, max_pixels=max_pixels, skip_bad=skip_bad)
    data: DetectionData = whole
    validation: DetectionData | None = None
    if validation_split is not None:
        validation = CocoFolder(*validation_split, max_size=max_size, max_pixels=max_pixels, skip_bad=skip_bad)
        if held_share and is_main():
            say(f"{folder}: there is a val split, so nothing is held out of the train split")
    elif held_share:
        data, validation = hold_out(whole, held_share)
    if is_main():
        say_of(whole, validation)
        if validation is None:
            what = f"there is no val split, so nothing is evaluated; looked for {looked_for('val')}"
            say(f"{folder}: {what}; --hold-out 0.1 validates on a tenth of the images")
        elif validation_split is None:
            say(f"{folder}: {len(validation)} of {len(whole)} images are held out to validate on")
    torch.manual_seed(settings.train.seed)
    cure = "train with --queries {} (num_queries in the config file)"
    if before is None:
        model = starting.new_model(settings.model_for(len(data.categories)))
    else:
        start = starting.fit_categories(before, data.categories)
        model, cure = start.detector.model, f"the starting weights fix that number; leave out --from, and {cure}"
        if is_main():
            print(f"starting weights: {settings.start}; {start}")
    _say_what_is_shown(folder, data, validation, model.config.transformer.num_queries, cure)
    return Detector(model, data.categories, max_size), data, validation


def _say_what_is_shown(
    folder: Path, data: "DetectionData", validation: "DetectionData | None", num_queries: int, cure: str
) -> None:
    """Say what of the `data` cannot be learnt, and what cannot be validated; it is an error if that is all."""
    from deform_attn.detr.data.objects import remarks_on, require_objects

    train = require_objects(data, f"{folder}, training split", "hold out less (--hold-out)")
    held = None
    if validation is not None:
        held = require_objects(validation, f"{folder}, validation split", "hold out more (--hold-out)")
    if is_main():
        for remark in remarks_on(train, held, num_queries, cure):
            say(f"{folder}: {remark}")
