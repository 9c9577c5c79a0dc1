"""Fixtures of the explorer's tests: a browser that shows pages."""

import pytest
from browser import Browser


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread):
    """The models here are so small."""


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser; starting one takes longer than all that is done in it."""
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
