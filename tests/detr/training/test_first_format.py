"""Checkpoints whose training was kept in two files, as versions before `training.safetensors` alone wrote them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from deaths import new, old, write_first_format
from patches import Assorted

from deform_attn.detr.checkpoints.checkpoint import check_target, load_model, save
from deform_attn.detr.checkpoints.training_state import load_trained, load_training
from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.training.engine import fit

CONFIG = TrainConfig(epochs=1, batch_size=2)


def test_a_training_of_the_first_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_first_format(tmp_path)
    said = (
        r"training\.safetensors: was written by an earlier version of deform-attn, format 1; this version reads format "
        r"2; resume with that version, or start from its weights \(--from\) in another directory$"
    )
    with pytest.raises(CheckpointError, match=said):
        load_training(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        fit(old(), Assorted(2), CONFIG, tmp_path, resume=True)


def test_its_model_loads_and_it_can_be_replaced(tmp_path: Path) -> None:
    write_first_format(tmp_path)
    assert load_model(tmp_path).model.config == old().model.config
    fit(old(), Assorted(2), CONFIG, tmp_path, overwrite=True)
    assert len(load_training(tmp_path).history) == 1
    assert not (tmp_path / "training.json").exists()


@pytest.mark.parametrize(
    "action",
    [load_model, load_trained, load_training, check_target, lambda path: save(path, new())],
    ids=["load_model", "load_trained", "load_training", "check_target", "save"],
)
def test_a_checkpoint_that_an_earlier_version_was_replacing_is_refused_with_how_to_finish_it(
    tmp_path: Path, action: Callable[[Path], object]
) -> None:
    write_first_format(tmp_path)
    unfinished = tmp_path / ".deform-attn-decided"
    unfinished.mkdir()
    (tmp_path / "model.safetensors").rename(unfinished / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"was stopped while it replaced this checkpoint; move all files of"):
        action(tmp_path)
    assert (unfinished / "model.safetensors").exists()
    (unfinished / "model.safetensors").rename(tmp_path / "model.safetensors")  # as it says
    unfinished.rmdir()
    load_model(tmp_path)
