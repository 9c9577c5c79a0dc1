"""The verb `info`: what is here."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from deform_attn import explain, timing
from deform_attn.backends.native import registration

NAME, SUMMARY = "info", "print versions, this machine, and which backends are available and why"

_EXTRA = (
    "accelerate",
    "huggingface-hub",
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


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Say what the verb takes: nothing."""


def run(_: argparse.Namespace) -> None:
    """Print it."""
    here = timing.machine()
    print(f"deform-attn {version('deform-attn')}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{here['system']}, {here['memory_gib']} GiB" if here["memory_gib"] else here["system"])
    print(f"{here['processor']}, {here['cores']} cores, torch uses {timing.thread_count()}")
    print(f"instruction sets: {_instruction_sets()}; torch's {here['torch_instruction_set']}")
    print(f"accelerator: {_accelerator()}")
    print("\nbackends, in order of preference:")
    print(explain())
    print("\npackages of deform-attn[detr]:")
    for name in _EXTRA:
        try:
            print(f"   {name} {version(name)}")
        except PackageNotFoundError:
            print(f"   {name} is not installed")


def _instruction_sets() -> str:
    """Return which instruction sets the CPU kernels were built for and can run here, and the one they use."""
    if registration.unavailable_reasons():
        return "no CPU kernels (see below)"
    library = registration.loaded()
    return f"the CPU kernels use {library.isa}, of {', '.join(library.isas)} (DEFORM_ATTN_ISA chooses)"


def _accelerator() -> str:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return "none that this torch can use"
    name = f" ({torch.cuda.get_device_name()})" if device.type == "cuda" else ""
    return f"{device.type}, {torch.accelerator.device_count()} of them{name}"
