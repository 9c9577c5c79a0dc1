"""Fixtures of the command's tests."""

import pytest
import torch
from cli_cases import write_split


@pytest.fixture(autouse=True)
def _one_thread():
    """The detectors here are so small that torch's threads would mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path):
    """A folder with two training pictures, one validation picture, and a box in each."""
    for split, count in (("train", 2), ("val", 1)):
        write_split(tmp_path / f"{split}.json", tmp_path / split, count)
    return tmp_path
