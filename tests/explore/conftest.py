"""Fixtures of the explorer's tests: one thread."""

import pytest


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread):
    """The models here are so small."""
