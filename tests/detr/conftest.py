"""What all tests of the detector have."""

import pytest


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread):
    """The models here are so small."""
