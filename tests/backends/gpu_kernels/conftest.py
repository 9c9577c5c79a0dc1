"""Fixtures of the tests of the GPU kernels, and the count of their launches."""

from interpreted import bands, launches
from launch_count import every_launch_counted, pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown

__all__ = [
    "bands",
    "every_launch_counted",
    "launches",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_testnodedown",
]
