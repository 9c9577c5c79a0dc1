"""Progress: a bar with the time left for whoever watches in a terminal, and plain lines for a log."""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from deform_attn.detr.extra import detr_extra
from deform_attn.detr.prediction.predict import OnPicture
from deform_attn.detr.training.engine import Progress

_SILENCE = 300.0
"""Seconds after which a log gets a line within an epoch, too."""


class Shown(Protocol):
    """What a training reports to: `on_step` and `on_epoch` are those of `fit`, `steps` counts the former's calls."""

    steps: int

    def on_step(self, progress: Progress) -> None:
        """Take where the training stands after a step."""

    def on_epoch(self, record: Mapping[str, float], epochs: int) -> None:
        """Take what a whole epoch gave, of how many."""


@contextmanager
def progress_bar(title: str | None = None, enabled: bool = True) -> Iterator[Shown]:
    """Give what shows a training on the standard error stream: a bar in a terminal, elsewhere a line for each epoch.

    It begins with the first step, below a line with the `title`, if any, so that a training that is refused shows
    nothing.

    Example:
        >>> with progress_bar() as shown:  # doctest: +SKIP
        ...     fit(detector, data, config, "run/checkpoint", on_step=shown.on_step, on_epoch=shown.on_epoch)
    """
    if enabled and sys.stderr is not None and not _is_watched():
        yield _Lines(title)
        return
    with ExitStack() as stack:
        yield _Bar(title, enabled and sys.stderr is not None, stack)


class _Bar:
    """A bar over all steps, which appears with the first one."""

    def __init__(self, title: str | None, enabled: bool, stack: ExitStack) -> None:
        with detr_extra():
            from tqdm import tqdm

        self.steps = 0
        self._title, self._enabled, self._stack = title, enabled, stack
        self._tqdm: Any = tqdm
        self._bar: Any = None

    def on_step(self, progress: Progress) -> None:
        self.steps += 1
        said = f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.2f}"
        if progress.validated is not None:
            said += f", AP50 {progress.validated:.2f}"
        if self._bar is None:  # the first step says how many there are and, after a resumption, where it goes on
            self._bar = self._stack.enter_context(self._begun(said, progress))
        else:
            self._bar.set_description(said, refresh=False)
            self._bar.update(1)

    def on_epoch(self, record: Mapping[str, float], epochs: int) -> None:
        """Do nothing: the next step brings the metrics of this epoch."""

    def _begun(self, said: str, progress: Progress) -> Any:
        if self._title is not None and self._enabled:
            self._tqdm.write(self._title, file=sys.stderr)
        return self._tqdm(
            desc=said,
            total=progress.epochs * progress.steps,
            initial=(progress.epoch - 1) * progress.steps + progress.step,
            smoothing=0,  # the mean pace, with the evaluations, tells best when all will be done
            disable=not self._enabled,
            unit="step",
            dynamic_ncols=True,
        )


class _Lines:
    """A line for each epoch, and for a part of a long one."""

    def __init__(self, title: str | None) -> None:
        self.steps = 0
        self._title, self._start, self._left = title, time.monotonic(), 0
        self._last = self._start

    def on_step(self, progress: Progress) -> None:
        if self.steps == 0 and self._title is not None:
            self._say(self._title)
        self.steps += 1
        self._left = (progress.epochs - progress.epoch + 1) * progress.steps - progress.step
        if time.monotonic() - self._last >= _SILENCE and progress.step < progress.steps:
            step = f"step {progress.step}/{progress.steps}"
            self._say(f"epoch {progress.epoch}/{progress.epochs}, {step}, loss {progress.loss:.2f}")

    def on_epoch(self, record: Mapping[str, float], epochs: int) -> None:
        parts = [f"epoch {record['epoch']:.0f}/{epochs}", f"loss {record['loss']:.2f}"]
        if not math.isnan(record.get("AP50", math.nan)):
            parts.append(f"AP50 {record['AP50']:.2f}")
        parts.append(f"{record['seconds']:.0f} s")
        if self._left and self.steps:
            parts.append(f"{_clock((time.monotonic() - self._start) / self.steps * self._left)} left")
        self._say(", ".join(parts))

    def _say(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
        self._last = time.monotonic()


def _clock(seconds: float) -> str:
    """Return a time such as 1:02:03, or 02:03 if it is less than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


@contextmanager
def picture_bar() -> Iterator[OnPicture]:
    """Give a function for `predict`'s `on_picture` that draws a bar over all pictures, if somebody watches."""
    with detr_extra():
        from tqdm import tqdm

    with tqdm(unit="image", disable=not _is_watched(), dynamic_ncols=True) as bar:

        def on_picture(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_picture


def _is_watched() -> bool:
    """Return whether the standard error stream, which a process may be started without, is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
