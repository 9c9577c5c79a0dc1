"""The `deform-attn` command: parses arguments, calls, prints."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deform_attn import explain, speed
from deform_attn.detr.errors import OccupiedError, TrainingStopped, UserError

if TYPE_CHECKING:
    from deform_attn.detr.data.coco import CocoFolder

_EXTRA = (
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "matplotlib",
    "pycocotools",
    "safetensors",
    "tensorboard",
    "tqdm",
    "transformers",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process by default) and return its exit status.

    0: done. 1: something that the user gave or asked for does not work; one line on the standard error stream says
    what. 2: wrong usage. 130: stopped by Ctrl-C; one line says what is kept. 141: whoever read the output, such as
    `head`, has gone.
    """
    try:
        try:
            return _run(_parser().parse_args(arguments))
        finally:
            print(end="", flush=True)  # rather than at the process's end, where an error can no longer be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 141


def _run(options: argparse.Namespace) -> int:
    try:
        options.run(options)
    except TrainingStopped as stop:
        _say(f"stopped {_kept(stop)}")
        return 130
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except BrokenPipeError:
        raise
    except OccupiedError as error:
        ways = "go on with it (--resume), replace it (--overwrite), or choose another folder (--out)"
        _say(f"error: {error.path}: holds a training; {ways}")
        return 1
    except (UserError, ModuleNotFoundError, OSError) as error:  # OSError: a file out of reach, a full disk
        _say(f"error: {error}")
        return 1
    return 0


def _say(line: str) -> None:
    print(f"deform-attn: {line}", file=sys.stderr)


def _kept(stop: TrainingStopped) -> str:
    from deform_attn.detr import checkpoint

    if stop.kept:
        return f"with epoch {stop.kept} of {stop.epochs} kept in {stop.path}; go on from there with --resume"
    earlier = f"; {stop.path} still holds the earlier one" if checkpoint.exists(stop.path) else ""
    return f"in the first epoch; nothing of this training is kept{earlier}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deform-attn", description="Deformable attention: a detector, and what is here."
    )
    parser.add_argument("--version", action="version", version=f"deform-attn {version('deform-attn')}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    demo = verbs.add_parser("demo", help="train a small detector on handwritten digits and show what it learnt")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to (default: %(default)s)")
    demo.add_argument(
        "--epochs", type=_positive, help="passes over 2,000 fresh scenes each (default: the tested recipe)"
    )
    demo.add_argument("--seed", type=int, default=0, help="of the scenes and the weights (default: %(default)s)")
    _add_restart(demo)
    demo.set_defaults(run=_demo)

    train = verbs.add_parser("train", help="train a detector on pictures in COCO format")
    train.add_argument("--data", type=Path, required=True, help="folder with train.json, train/, val.json and val/")
    train.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    train.add_argument("--epochs", type=_positive, default=50, help="passes over the pictures (default: %(default)s)")
    train.add_argument("--batch-size", type=_positive, default=8, help="pictures a step (default: %(default)s)")
    train.add_argument(
        "--queries", type=_positive, default=100, help="most objects in a picture (default: %(default)s)"
    )
    train.add_argument("--max-size", type=_positive, help="scale larger pictures to this longer side, in pixels")
    train.add_argument("--seed", type=int, default=0, help="of the order and the weights (default: %(default)s)")
    _add_restart(train)
    train.set_defaults(run=_train)

    evaluate = verbs.add_parser("evaluate", help="print COCO's metrics of a checkpoint")
    evaluate.add_argument("checkpoint", type=Path, help="folder that holds model.safetensors and config.json")
    evaluate.add_argument("--data", type=Path, required=True, help="folder with val.json and val/")
    evaluate.set_defaults(run=_evaluate)

    bench = verbs.add_parser(
        "bench",
        help="time the op on this machine against torch's grid_sample",
        description="Time the op on this machine against torch's grid_sample, in about half a minute.",
    )
    bench.add_argument("--threads", type=_positive, help="for both (default: torch's number, here %(default)s)")
    bench.set_defaults(run=_bench, threads=torch.get_num_threads())

    info = verbs.add_parser("info", help="print versions, and which backends are available and why")
    info.set_defaults(run=_info)
    return parser


def _add_restart(verb: argparse.ArgumentParser) -> None:
    ways = verb.add_mutually_exclusive_group()
    ways.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder, if any")
    ways.add_argument("--overwrite", action="store_true", help="replace the checkpoint in the folder")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above zero, got {text!r}")
    return number


def _demo(options: argparse.Namespace) -> None:
    from deform_attn.detr.demo import CHECKPOINT, run_demo
    from deform_attn.detr.evaluation import format_metrics
    from deform_attn.detr.progress import progress_bar

    _say_if_anew(options, options.out / CHECKPOINT)
    with progress_bar() as on_step:
        result = run_demo(
            options.out,
            epochs=options.epochs,
            seed=options.seed,
            resume=options.resume,
            overwrite=options.overwrite,
            on_step=on_step,
        )
    print("On 200 test scenes, of digits and parts of photographs not seen in training (AP<16: below 16 x 16 pixels)")
    print(format_metrics(result.metrics))
    seconds = [epoch["seconds"] for epoch in result.history]
    count, mean = len(seconds), sum(seconds) / len(seconds)
    epochs = f"1 epoch of {mean:.0f} s" if count == 1 else f"{count} epochs of {mean:.0f} s on average"
    print(f"{epochs}, {result.seconds:.0f} s for this run")
    for file in result.files:
        print(f"wrote {file}")


def _train(options: argparse.Namespace) -> None:
    from deform_attn.detr.checkpoint import Detector
    from deform_attn.detr.config import ModelConfig, TrainConfig, TransformerConfig
    from deform_attn.detr.engine import fit
    from deform_attn.detr.evaluation import format_metrics
    from deform_attn.detr.model import build_model
    from deform_attn.detr.progress import progress_bar

    data, validation = (_split(options.data, split, options.max_size) for split in ("train", "val"))
    transformer = TransformerConfig(num_queries=options.queries)
    config = TrainConfig(epochs=options.epochs, batch_size=options.batch_size, seed=options.seed)
    torch.manual_seed(config.seed)
    model = build_model(ModelConfig(num_classes=len(data.categories), transformer=transformer))
    detector = Detector(model, data.categories, options.max_size)
    _say_if_anew(options, options.out)
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


def _evaluate(options: argparse.Namespace) -> None:
    from deform_attn.detr.checkpoint import load_model
    from deform_attn.detr.evaluation import format_metrics
    from deform_attn.detr.validation import evaluate_model

    detector = load_model(options.checkpoint)
    data = _split(options.data, "val", detector.max_size)
    print(format_metrics(evaluate_model(detector, data)))


def _say_if_anew(options: argparse.Namespace, path: Path) -> None:
    from deform_attn.detr import checkpoint

    if options.resume and not checkpoint.exists(path):
        _say(f"{path} holds no training yet; a new one begins")


def _split(folder: Path, split: str, max_size: int | None) -> "CocoFolder":
    from deform_attn.detr.data.coco import CocoFolder

    return CocoFolder(folder / f"{split}.json", folder / split, max_size=max_size)


def _bench(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    for line in speed.report():
        print(line, flush=True)  # the next one takes seconds


def _info(_: argparse.Namespace) -> None:
    print(f"deform-attn {version('deform-attn')}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{platform.system()} {platform.machine()}, {speed.thread_count()}")
    print("\nbackends, in order of preference:")
    print(explain())
    print("\npackages of deform-attn[detr]:")
    for name in _EXTRA:
        try:
            print(f"   {name} {version(name)}")
        except PackageNotFoundError:
            print(f"   {name} is not installed")
