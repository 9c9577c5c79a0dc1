"""Fixtures of the tests of the GPU kernels, and the count of their launches."""

import pytest
from direct_calls import gpu
from interpreted import bands, launches
from launch_count import every_launch_counted, pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown

from benchmarks.gpu.no_device import active_driver, forget

__all__ = [
    "bands",
    "driver",
    "every_launch_counted",
    "gpu",
    "launches",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_testnodedown",
]


@pytest.fixture
def driver():
    """Return a driver without a device that is the active one, and counts launches."""
    pytest.importorskip("triton")
    forget()
    yield active_driver("sm_90")
    forget()
