"""The verb `bench`: time the op on this machine."""

import argparse

import torch

from deform_attn import timing
from deform_attn.cli.common import positive

NAME, SUMMARY = "bench", "time the op on this machine against torch's grid_sample, in about half a minute"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Say what the verb takes."""
    verb.add_argument(
        "--threads",
        type=positive,
        default=torch.get_num_threads(),
        metavar="N",
        help="number of threads for both (default: torch's number)",
    )


def run(options: argparse.Namespace) -> None:
    """Print the report, each line as soon as it is known."""
    torch.set_num_threads(options.threads)
    for line in timing.report():
        print(line, flush=True)  # the next one takes seconds
