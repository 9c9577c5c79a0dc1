"""Which device a name means."""

import pytest
import torch

from deform_attn.detr.device import choose_device
from deform_attn.detr.errors import ConfigError
from second_device import second_device


def test_the_default_is_cuda_if_available_and_otherwise_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert choose_device() == torch.device(expected)


def test_a_device_that_is_misspelt_or_not_there_is_an_error_that_names_those_that_are() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device: expected one of cpu, got 'cud'; check the spelling"):
        choose_device("cud")
    with second_device() as device:
        assert choose_device("meta:0") == torch.device("meta:0")
        assert choose_device(device) == device
        for name in ("meta:1", "xpu", "cpu:1"):
            with pytest.raises(ConfigError, match=f"expected one of cpu, meta, meta:0, got '{name}', which this torch"):
                choose_device(name)
