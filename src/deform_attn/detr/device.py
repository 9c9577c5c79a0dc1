"""The device on which a detector trains or detects, by the name that torch gives it."""

import torch

from deform_attn.detr.errors import ConfigError


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device that `name` means.

    Args:
        name: torch's name, such as "cpu", "cuda", "cuda:1" or "mps". Default: "cuda" (CUDA or ROCm) if available,
            otherwise "cpu". MPS is not chosen by default: the op runs through grid_sample there, and no detector was
            ever run on it.

    Raises:
        ConfigError: torch knows no such name, or that device is not available here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: expected one of {_available()}, got {str(name)!r}; check the spelling") from error
    gpu = torch.accelerator.current_accelerator(check_available=True)
    counts = {"cpu": 1} if gpu is None else {"cpu": 1, gpu.type: torch.accelerator.device_count()}
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ConfigError(
            f"device: expected one of {_available()}, got {str(name)!r}, which this torch does not see; "
            "`deform-attn info` prints the devices of this machine"
        )
    return device


def _available() -> str:
    """Return the names of the devices that torch sees."""
    gpu = torch.accelerator.current_accelerator(check_available=True)
    if gpu is None:
        return "cpu"
    return ", ".join(["cpu", gpu.type, *(f"{gpu.type}:{i}" for i in range(torch.accelerator.device_count()))])
