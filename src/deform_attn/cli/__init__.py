"""The `deform-attn` command: parses arguments, calls, prints. One file a verb."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

from deform_attn.cli import bench, demo, evaluate, explore, export, info, predict, train
from deform_attn.cli.common import is_main, say
from deform_attn.detr.errors import DataWarning, OccupiedError, TrainingStopped, UserError, one_line

VERBS = (demo, train, evaluate, predict, explore, export, bench, info)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process by default) and return its exit status.

    0: done. 1: something that the user gave or asked for does not work; one line on the standard error stream says
    what. 2: wrong usage, or no arguments, for which the help is printed. 130: stopped by Ctrl-C; one line says what is
    kept. 141: whoever read the output, such as `head`, has gone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot write ends no training
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            with _plain_warnings():
                return _run(_parsed(sys.argv[1:] if arguments is None else arguments))
        finally:
            print(end="", flush=True)  # rather than at the process's end, where an error can no longer be caught
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        if isinstance(error, BrokenPipeError):
            return 141
        say(f"error: {error}")
        return 1


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Within the block, say warnings about the data as one line, without a place in the source."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, DataWarning):
                show(message, category, *place, **more)
            elif is_main():
                say(str(message))

        warnings.showwarning = show_plainly
        # Of several files with the same damage each has its line; without, Python would show Pillow's text once.
        warnings.filterwarnings("always", category=UserWarning, module=r"PIL\.")
        yield


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what `arguments` say; without any, print the help and exit."""
    parser = build_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    try:
        options.run(options)
    except TrainingStopped as stop:
        say(f"stopped {_kept(stop)}")
        return 130
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except BrokenPipeError:
        raise
    except OccupiedError as error:
        ways = "resume it (--resume), replace it (--overwrite), or choose another folder (--out)"
        say(f"error: {error.path}: holds a training; {ways}")
        return 1
    except (MemoryError, RuntimeError) as error:
        # Of a CPU's memory torch says in a text alone that it is short.
        short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not short:
            raise
        say(
            f"error: out of memory ({one_line(error)}); smaller images (--max-size) or batches (--batch-size) need less"
        )
        return 1
    except (UserError, ModuleNotFoundError, OSError) as error:  # OSError: a file out of reach, a full disk
        say(f"error: {error}")
        return 1
    return 0


def _kept(stop: TrainingStopped) -> str:
    from deform_attn.detr.checkpoints import checkpoint

    if stop.kept or stop.steps:
        steps = "1 step" if stop.steps == 1 else f"{stop.steps} steps"
        last = f"{steps} of epoch {stop.kept + 1}" if stop.steps else f"epoch {stop.kept}"
        return f"with {last} of {stop.epochs} kept in {stop.path}; continue with --resume"
    earlier = f"; {stop.path} still holds the earlier one" if checkpoint.exists(stop.path) else ""
    return f"in the first epoch; nothing of this training is kept{earlier}"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="deform-attn", description="Train, evaluate, use and export a detector with deformable attention."
    )
    parser.add_argument("--version", action="version", version=f"deform-attn {version('deform-attn')}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in VERBS:
        description = f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}."
        verb = verbs.add_parser(module.NAME, help=module.SUMMARY, description=description)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser
