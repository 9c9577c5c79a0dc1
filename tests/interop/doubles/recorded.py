"""The numbers of the real modules, as they were recorded, and the comparison with them."""

import json
from pathlib import Path

import torch
from doubles.calls import FAMILIES

from tolerances import assert_close

FOLDER = Path(__file__).parents[1] / "recorded"
CALLS = [(family, name) for family, (_, _, given) in FAMILIES.items() for name in given]


def recorded(family):
    """Return what is recorded of a family: its repository, commit and file, how it starts, and its calls."""
    return json.loads((FOLDER / f"{family}.json").read_text())


def assert_recorded(found, family, name, dtype=torch.float64):
    """Compare with the numbers of the real code; where it had no gradient, there is none, or zeros."""
    expected = recorded(family)["calls"][name]
    assert expected.keys() <= found.keys()
    for key, tensor in found.items():
        numbers = expected.get(key, [0.0] * tensor.numel())
        try:
            assert_close(tensor.flatten(), numbers, dtype)
        except AssertionError as error:
            error.add_note(f"{family}, {name}: {key}")
            raise
