"""What the times of a GPU depend on: the card, its driver, versions, and the state of the sources."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.packages import versions
from benchmarks.sources import commit
from deform_attn.timing import machine

_AMD_DRIVER = Path("/sys/module/amdgpu/version")


def setting_of(device: torch.device) -> dict[str, Any]:
    """Return what all rows of a result have in common."""
    return {
        "device": device_name(device),
        "card": _card(device),
        "driver": driver(device),
        "cuda": torch.version.cuda or torch.version.hip,
        "versions": versions() | {"triton": _triton()},
        "commit": commit(),
        "machine": machine(),
    }


def device_name(device: torch.device) -> str:
    """Return what the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def driver(device: torch.device) -> str:
    """Return the version of the driver of a CUDA or ROCm device, as far as the system says it."""
    if device.type != "cuda":
        return "none"
    if torch.version.hip:
        return _AMD_DRIVER.read_text().strip() if _AMD_DRIVER.exists() else "unknown"
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return found[0] if found else "unknown"


def _card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    known = torch.cuda.get_device_properties(device)
    return {
        "architecture": known.gcnArchName if torch.version.hip else f"sm_{known.major}{known.minor}",
        "multiprocessors": known.multi_processor_count,
        "memory_gib": round(known.total_memory / 2**30, 1),
    }


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)
