"""Fixtures of the command's tests."""

import pytest
from cli_cases import write_split


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread):
    """The models here are so small."""


@pytest.fixture
def folder(tmp_path):
    """A folder with two training pictures, one validation picture, and a box in each."""
    for split, count in (("train", 2), ("val", 1)):
        write_split(tmp_path / f"{split}.json", tmp_path / split, count)
    return tmp_path
