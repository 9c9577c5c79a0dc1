"""Progress: bars with the time left, and of a training loss and last AP50, for whoever watches in a terminal."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from deform_attn.detr.extra import detr_extra
from deform_attn.detr.prediction.predict import OnPicture
from deform_attn.detr.training.engine import OnStep, Progress


@contextmanager
def progress_bar(title: str | None = None, enabled: bool = True) -> Iterator[OnStep]:
    """Give a function for `fit`'s `on_step` that draws a bar over all steps on the standard error stream.

    It appears with the first step, below a line with the `title`, if any, so that a training that is refused shows
    none. Where nobody watches, as in a log, it is drawn every half minute.

    Example:
        >>> with progress_bar() as on_step:  # doctest: +SKIP
        ...     fit(detector, data, config, "run/checkpoint", on_step=on_step)
    """
    with detr_extra():
        from tqdm import tqdm

    bar: Any = None
    with ExitStack() as stack:

        def on_step(progress: Progress) -> None:
            nonlocal bar
            said = f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.2f}"
            if progress.validated is not None:
                said += f", AP50 {progress.validated:.2f}"
            if bar is None:  # the first step says how many there are and, after a resumption, where it goes on
                shown = enabled and sys.stderr is not None
                if title is not None and shown:
                    tqdm.write(title, file=sys.stderr)
                bar = tqdm(
                    desc=said,
                    total=progress.epochs * progress.steps,
                    initial=(progress.epoch - 1) * progress.steps + progress.step,
                    smoothing=0,  # the mean pace, with the evaluations, tells best when all will be done
                    mininterval=0.1 if _is_watched() else 30,
                    maxinterval=10 if _is_watched() else 30,
                    disable=not shown,
                    unit="step",
                    dynamic_ncols=True,
                )
                stack.enter_context(bar)
            else:
                bar.set_description(said, refresh=False)
                bar.update(1)

        yield on_step


@contextmanager
def picture_bar() -> Iterator[OnPicture]:
    """Give a function for `predict`'s `on_picture` that draws a bar over all pictures, if somebody watches."""
    with detr_extra():
        from tqdm import tqdm

    with tqdm(unit="picture", disable=not _is_watched(), dynamic_ncols=True) as bar:

        def on_picture(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_picture


def _is_watched() -> bool:
    """Return whether the standard error stream, which a process may be started without, is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
