import sys

import pytest

from deform_attn.detr.training import progress as module
from deform_attn.detr.training.engine import Progress
from deform_attn.detr.training.progress import picture_bar, progress_bar


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the standard error stream be a terminal."""
    monkeypatch.setattr(module, "_is_watched", lambda: True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose only number is the time, in seconds."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def record(epoch: int, **metrics: float) -> dict[str, float]:
    return {"epoch": float(epoch), "loss": 2.5, "seconds": 34.4, **metrics}


@pytest.mark.parametrize("watched", [True, False])
def test_nothing_is_shown_before_the_first_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    monkeypatch.setattr(module, "_is_watched", lambda: watched)
    with progress_bar("images: 2") as shown:
        assert shown.steps == 0
    assert capsys.readouterr() == ("", "")


def test_the_bar_counts_over_all_epochs_and_from_where_a_training_resumed(
    capsys: pytest.CaptureFixture[str], terminal: None
) -> None:
    with progress_bar("images: 2") as shown:
        for step in range(1, 5):
            shown.on_step(Progress(epoch=2, epochs=3, step=step, steps=4, loss=step / 2, validated=0.25))
        shown.on_epoch(record(2, AP50=0.5), 3)
    title, _, bars = capsys.readouterr().err.partition("\n")
    first, *_, last = bars.split("\r")[1:]
    assert title == "images: 2"
    assert "epoch 2/3, loss 0.50, AP50 0.25" in first
    assert " 5/12 [" in first
    assert "epoch 2/3, loss 2.00, AP50 0.25" in last
    assert " 8/12 [" in last
    assert shown.steps == 4


def test_the_time_left_is_that_of_the_whole_training_at_its_pace_so_far(
    capsys: pytest.CaptureFixture[str], terminal: None, clock: list[float]
) -> None:
    with progress_bar() as shown:
        for epoch in (2, 3):  # resumed after the first
            for step in (1, 2, 3, 4):
                shown.on_step(Progress(epoch=epoch, epochs=5, step=step, steps=4, loss=0.0))
                clock[0] += 30.0
            clock[0] += 60.0  # an evaluation
    # 7 of the 8 steps are timed, with one evaluation in 270 s; 8 steps are left.
    assert "12/20 [04:30<05:08" in capsys.readouterr().err


def test_a_log_gets_a_line_for_each_epoch_with_the_time_left(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with progress_bar("images: 2, categories: tree") as shown:
        for epoch, metrics in ((1, {"AP50": 0.125}), (2, {"AP50": float("nan")}), (3, {})):
            for step in (1, 2):
                clock[0] += 40.0
                shown.on_step(Progress(epoch=epoch, epochs=3, step=step, steps=2, loss=1.0))
            clock[0] += 20.0
            shown.on_epoch(record(epoch, **metrics), 3)
    assert capsys.readouterr().err.splitlines() == [
        "images: 2, categories: tree",
        "epoch 1/3, loss 2.50, AP50 0.12, 34 s, 03:20 left",
        "epoch 2/3, loss 2.50, 34 s, 01:40 left",
        "epoch 3/3, loss 2.50, 34 s",
    ]


def test_a_log_of_a_long_epoch_gets_a_line_every_five_minutes(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with progress_bar() as shown:
        for step in range(1, 121):
            clock[0] += 10.0
            shown.on_step(Progress(epoch=1, epochs=9, step=step, steps=120, loss=1.0))
        shown.on_epoch(record(1), 9)
    assert capsys.readouterr().err.splitlines() == [
        *(f"epoch 1/9, step {step}/120, loss 1.00" for step in (30, 60, 90)),
        "epoch 1/9, loss 2.50, 34 s, 2:40:00 left",
    ]


@pytest.mark.parametrize("watched", [True, False])
def test_what_is_not_wanted_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    monkeypatch.setattr(module, "_is_watched", lambda: watched)
    with progress_bar(enabled=False) as shown:
        shown.on_step(Progress(epoch=1, epochs=1, step=1, steps=2, loss=0.0))
        shown.on_epoch(record(1), 1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("watched", [True, False])
def test_pictures_are_counted_for_whoever_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    with picture_bar() as on_picture:
        on_picture(1, 3)
        on_picture(3, 3)
    printed = capsys.readouterr().err
    assert ("3/3 [" in printed) if watched else printed == ""


def test_without_an_error_stream_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar() as shown, picture_bar() as on_picture:
        shown.on_step(Progress(epoch=1, epochs=1, step=1, steps=1, loss=0.5))
        shown.on_epoch(record(1), 1)
        on_picture(1, 1)
