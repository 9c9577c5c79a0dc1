"""Triton itself: whether it is here, whether it interprets kernels on the CPU, and how it fails to compile one."""

import importlib.util
import os
import subprocess
from functools import cache
from typing import Any

import torch

from deform_attn import torch_names

OLDEST = (3, 6)
_NEWEST_LAUNCHER = (3, 9)  # by its source, `CompiledKernel.run` takes what compiled.py hands it, as in 3.6 to 3.8


class KernelUnavailable(Exception):
    """A kernel cannot be made on this machine; the text says why."""


def is_interpreting() -> bool:
    """Return whether kernels run in Triton's interpreter, on the CPU; Triton asks so where it meets each kernel."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def missing() -> list[str]:
    """Return what keeps every kernel from running on this machine."""
    if torch_names.OPS.missing:
        return [torch_names.OPS.verdict]
    if importlib.util.find_spec("triton") is None:
        return ["Triton is not installed; it comes with torch's builds for CUDA and ROCm (Windows: triton-windows)"]
    import triton

    if _version() < OLDEST:
        return [f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}"]
    return []


def knows_launcher() -> bool:
    """Return whether this Triton is one whose launcher is called here without the way around it."""
    return OLDEST <= _version() <= _NEWEST_LAUNCHER


def _version() -> tuple[int, ...]:
    import triton

    return tuple(int(number) for number in triton.__version__.split(".")[:2])


def require() -> None:
    """Raise KernelUnavailable where no kernel can run on this machine."""
    if reasons := missing():
        raise KernelUnavailable("; ".join(reasons))


def compiled(kernel: Any, args: tuple[Any, ...], num_warps: int) -> Any:
    """Return a kernel compiled for arguments like these and loaded on the current device.

    Raises:
        KernelUnavailable: this machine cannot compile it. Errors of the device itself are not caught.
    """
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        # Fused multiply-adds would move points off the centres of pixels.
        made = kernel.warmup(*args, grid=(1,), num_warps=num_warps, num_stages=1, enable_fp_fusion=False)
        made._init_handles()
        return made
    except (CompilationError, OutOfResources, PTXASError, subprocess.CalledProcessError, OSError, ImportError) as error:
        raise KernelUnavailable(_reason(error)) from error
    except RuntimeError as error:
        # Triton has no type of its own for a missing C compiler, nor for a machine without a driver.
        if any(text in str(error) for text in ("C compiler", "active drivers", "compatible backends")):
            raise KernelUnavailable(_reason(error)) from error
        raise


def is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being recorded, where nothing may wait for the device."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _reason(error: BaseException) -> str:
    # Triton's own errors lie in those of the functions that called what is wrong.
    while type(error.__cause__) is type(error):
        error = error.__cause__
    lines = [line.strip() for line in reversed(str(error).splitlines()) if line.strip()]
    return f"Triton could not compile for this GPU ({type(error).__name__}: {lines[0] if lines else 'no message'})"
