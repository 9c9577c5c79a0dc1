"""Fixtures of the tests of the GPU kernels."""

from interpreted import bands, launches

__all__ = ["bands", "launches"]
