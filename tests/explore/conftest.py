"""Fixtures of the explorer's tests: a browser that shows pages."""

import pytest
import torch
from browser import Browser


@pytest.fixture(autouse=True)
def _one_thread():
    """The models here are so small that torch's threads would mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser; starting one takes longer than all that is done in it."""
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
