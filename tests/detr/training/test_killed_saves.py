"""A checkpoint whose process is killed at each of the calls with which a save changes files."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deaths import AFTER, BEFORE, new, old, training

from deform_attn.detr.checkpoints.checkpoint import exists, load_model, save
from deform_attn.detr.checkpoints.training_state import load_trained, load_training
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.model.detector import Detector


def deaths(*arguments: str) -> int:
    """Return how many deaths `deaths.py` has brought about."""
    command = [sys.executable, str(Path(__file__).with_name("deaths.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def is_same(first: Detector, second: Detector) -> bool:
    states = first.model.state_dict(), second.model.state_dict()
    return (
        first.model.config == second.model.config
        and (first.categories, first.max_size) == (second.categories, second.max_size)
        and all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


QUICK = [("a training", "another training")]
KINDS = [
    pytest.param(*kind, id=" over ".join(kind), marks=() if kind in QUICK else pytest.mark.slow)
    for kind in itertools.product(AFTER, BEFORE)
]


@pytest.mark.parametrize(("after", "before"), KINDS)
def test_a_save_killed_at_any_call_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, after: str, before: str
) -> None:
    count = deaths("saves", str(tmp_path), after, before)
    assert count > 12, "three files are opened, synced and renamed"
    first, second = load_model(tmp_path / "0") if before != "nothing" else None, new()
    seen = set()
    for number in range(1, count + 2):
        path = tmp_path / str(number)
        if first is None and not exists(path):
            seen.add("nothing")
            continue
        found = load_model(path)
        is_new = is_same(found, second)
        assert is_new or (first is not None and is_same(found, first)), f"death {number}: neither model"
        seen.add("new" if is_new else "old")
        try:
            state = load_training(path)
        except CheckpointError:
            assert after == "a model" or before not in ("another training", "the save before"), f"death {number}"
        else:
            epochs = len(state.history)
            assert state.optimizer["a.step"] == epochs
            assert is_same(load_trained(path), second if epochs == 2 else first), f"death {number}: another's weights"
        assert is_new or number <= count
        save(path, second, training(3))
        assert files(path) == ["config.json", "model.safetensors", "training.safetensors"]
    assert seen == {"nothing" if first is None else "old", "new"}


@pytest.mark.slow
def test_two_processes_killed_at_any_call_of_a_save_over_another_training_leave_one_that_resumes(
    tmp_path: Path,
) -> None:
    count = deaths("trainings", str(tmp_path))
    assert count > 12
    whole = load_model(tmp_path / "whole")
    losses = [record["loss"] for record in load_training(tmp_path / "whole").history]
    seen = set()
    for number in range(1, count + 1):
        path, resumed = tmp_path / str(number), tmp_path / f"{number} resumed"
        found, state = load_model(path), load_training(path)
        is_old = is_same(found, old())
        assert is_old or is_same(found, load_trained(path)), f"death {number}: neither model"
        seen.add((is_old, state.position.step))
        assert is_same(load_model(resumed), whole)
        assert is_same(load_trained(resumed), whole)
        assert [record["loss"] for record in load_training(resumed).history] == losses
    assert seen == {(True, 0), (True, 2), (False, 2)}
