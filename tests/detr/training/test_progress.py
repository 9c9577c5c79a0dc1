import sys

import pytest

from deform_attn.detr.training.engine import Progress
from deform_attn.detr.training.progress import picture_bar, progress_bar


def test_no_bar_is_drawn_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar():
        pass
    assert capsys.readouterr() == ("", "")


def test_the_bar_counts_over_all_epochs_and_from_where_a_training_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as on_step:
        for step in range(1, 5):
            on_step(Progress(epoch=2, epochs=3, step=step, steps=4, loss=step / 2))
    first, *_, last = capsys.readouterr().err.split("\r")[1:]
    assert "epoch 2/3, loss 0.50" in first
    assert " 5/12 [" in first
    assert "epoch 2/3, loss 2.00" in last
    assert " 8/12 [" in last


def test_the_time_left_is_that_of_the_whole_training_at_its_pace_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    with progress_bar() as on_step:
        for epoch in (2, 3):  # resumed after the first
            for step in (1, 2, 3, 4):
                on_step(Progress(epoch=epoch, epochs=5, step=step, steps=4, loss=0.0))
                now += 30.0
            now += 60.0  # an evaluation
    # 7 of the 8 steps are timed, with one evaluation in 270 s; 8 steps are left.
    assert "12/20 [04:30<05:08" in capsys.readouterr().err


def test_a_log_gets_a_few_bars_rather_than_one_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as on_step:
        for step in range(1, 201):
            on_step(Progress(epoch=1, epochs=1, step=step, steps=200, loss=0.0))
    assert capsys.readouterr().err.count("\r") == 2  # the first and the last


def test_a_bar_that_is_not_wanted_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(enabled=False) as on_step:
        on_step(Progress(epoch=1, epochs=1, step=1, steps=2, loss=0.0))
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
    with progress_bar() as on_step, picture_bar() as on_picture:
        on_step(Progress(epoch=1, epochs=1, step=1, steps=1, loss=0.5))
        on_picture(1, 1)
