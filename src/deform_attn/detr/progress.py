"""Progress: a bar with the loss and the time left, for whoever runs a training in a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from deform_attn.detr.engine import OnStep, Progress
from deform_attn.detr.extra import detr_extra


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[OnStep]:
    """Give a function for `fit`'s `on_step` that draws a bar over all steps on the standard error stream.

    Example:
        >>> with progress_bar() as on_step:  # doctest: +SKIP
        ...     fit(detector, data, config, "run/checkpoint", on_step=on_step)
    """
    with detr_extra():
        from tqdm import tqdm

    with tqdm(disable=not enabled, unit="step", dynamic_ncols=True) as bar:

        def on_step(progress: Progress) -> None:
            done = (progress.epoch - 1) * progress.steps + progress.step
            if bar.total is None:  # the first step says how many there are and, after a resumption, where it goes on
                bar.total = progress.epochs * progress.steps
                bar.initial = bar.n = done - 1
            bar.set_description(f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.2f}", refresh=False)
            bar.update(1)

        yield on_step
