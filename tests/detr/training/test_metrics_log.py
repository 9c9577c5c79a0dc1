import csv
import itertools
import math
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patches import Assorted, detector

from deform_attn.detr.checkpoints.checkpoint import check_target
from deform_attn.detr.checkpoints.training_state import load_training
from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.errors import CheckpointError, TrainingStopped
from deform_attn.detr.training.engine import Progress, fit
from deform_attn.detr.training.metrics_log import MetricsLog, write_csv

CONFIG = TrainConfig(epochs=3, batch_size=2, warmup_steps=2, save_every=4)
DATA = Assorted(26)  # 13 steps an epoch, of which every tenth is in TensorBoard: 0, 10, 20, 30


@pytest.fixture(autouse=True)
def _a_second_passes_between_two_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads files in the order of their names: the second, then a count as text, where 10 is below 9."""
    seconds = itertools.count()
    clock = SimpleNamespace(time=lambda: time.time() + next(seconds))
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of each of TensorBoard's curves, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorBoard's own dependencies
        events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_csv_has_a_row_for_each_epoch_and_empty_cells_for_what_is_missing(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"epoch": 1.0, "loss": 0.1}, {"epoch": 2.0, "loss": 1e-7, "AP": math.nan, "x": 3}])
    assert (tmp_path / "a.csv").read_text() == "epoch,loss,AP,x\n1,0.1,,\n2,1e-07,,3\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_the_csv_of_a_training_holds_its_history(tmp_path: Path) -> None:
    history = fit(detector(), Assorted(4), CONFIG, tmp_path / "run", validation=Assorted(3))
    found = rows(tmp_path / "run")
    assert list(found[0])[:7] == ["epoch", "loss", "class", "box", "giou", "lr", "seconds"]
    for row, record in zip(found, history, strict=True):
        assert row.keys() == record.keys()
        for name, value in record.items():
            assert row[name] == "" if math.isnan(value) else float(row[name]) == value, name


class Killed(BaseException):
    """What no one catches."""


def test_a_resumed_training_has_each_epoch_and_each_step_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def run(moment: tuple[int, int] | None) -> list[dict[str, float]]:
        def stop(progress: Progress) -> None:
            if (progress.epoch, progress.step) == moment:
                raise KeyboardInterrupt

        return fit(detector(), DATA, CONFIG, folder, resume=True, on_step=stop, tensorboard=True)

    # Both in the middle of an epoch, after steps 10 and 30, which are taken again.
    for moment, kept in (((1, 11), (0, 8)), ((3, 7), (2, 4))):
        with pytest.raises(TrainingStopped) as caught:
            run(moment)
        assert (caught.value.kept, caught.value.steps) == kept
    history = run(None)
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3"]
    found = points(folder)
    assert found.keys() == {f"step/{name}" for name in ("loss", "class", "box", "giou", "lr")} | {
        f"epoch/{name}" for name in ("loss", "class", "box", "giou", "lr", "seconds")
    }
    for name, curve in found.items():
        expected = [0, 10, 20, 30] if name.startswith("step/") else [13, 26, 39]
        assert [step for step, _ in curve] == expected, name
    assert [value for _, value in found["epoch/loss"]] == pytest.approx([one["loss"] for one in history])

    whole = fit(detector(), DATA, CONFIG, tmp_path / "whole", tensorboard=True)
    assert [one["loss"] for one in whole] == [one["loss"] for one in history]
    assert points(tmp_path / "whole")["step/loss"] == found["step/loss"]


@pytest.mark.parametrize("moment", ["add_epoch", "flush"])
def test_a_training_killed_between_checkpoint_and_log_has_each_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    calls: Counter[str] = Counter()
    function = getattr(MetricsLog, moment)

    def killed(*arguments: Any) -> None:
        calls[moment] += 1
        if calls[moment] == 2:
            raise Killed
        function(*arguments)

    data, config = Assorted(4), TrainConfig(epochs=3, batch_size=2)
    with monkeypatch.context() as patches:
        patches.setattr(MetricsLog, moment, killed)
        with pytest.raises(Killed):
            fit(detector(), data, config, tmp_path / "run", validation=data, tensorboard=True)
    fit(detector(), data, config, tmp_path / "run", validation=data, tensorboard=True, resume=True)
    found = points(tmp_path / "run")
    assert [step for step, _ in found["epoch/loss"]] == [2, 4, 6]
    assert [step for step, _ in found["epoch/AP"]] == [2, 4, 6]
    assert len(rows(tmp_path / "run")) == 3


def test_overwriting_a_training_takes_its_events_back(tmp_path: Path) -> None:
    data, config = Assorted(4), TrainConfig(epochs=2, batch_size=2)
    fit(detector(), data, config, tmp_path / "run", tensorboard=True)
    fit(detector(), data, TrainConfig(epochs=1, batch_size=2), tmp_path / "run", tensorboard=True, overwrite=True)
    assert [step for step, _ in points(tmp_path / "run")["epoch/loss"]] == [2]
    assert len(rows(tmp_path / "run")) == 1


def test_there_are_no_events_unless_asked_for(tmp_path: Path) -> None:
    fit(detector(), Assorted(4), TrainConfig(epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert len(load_training(tmp_path / "run").history) == 1


def test_a_csv_file_of_somebody_elses_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"metrics\.csv: not the file of a checkpoint, and would be replaced"):
        check_target(tmp_path)
