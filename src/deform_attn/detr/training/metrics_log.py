"""The log of a training's figures, beside its checkpoint: a CSV file, and TensorBoard's events if wanted."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deform_attn.detr.checkpoints.folder import METRICS_FILE
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import atomic_path

TENSORBOARD_FOLDER = "tensorboard"
EVERY = 10
"""Steps between two of TensorBoard's points."""


def write_csv(path: str | os.PathLike[str], history: Sequence[Mapping[str, float]]) -> None:
    """Write `history` to `path`, a row for each epoch; a cell is empty where a figure is missing or undefined.

    Raises:
        OSError: it cannot be written; an older file is still there.
    """
    columns = list(dict.fromkeys(name for record in history for name in record))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(record.get(name, math.nan)) for name in columns] for record in history)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(int(value) if float(value).is_integer() else value)


class MetricsLog:
    """Writes the figures of a training to `folder`.

    The CSV file is written whole each time, from the history. TensorBoard's events are appended: a training that goes
    on after `done` steps takes back what its predecessor wrote after its last checkpoint.

    Args:
        folder: of the checkpoint.
        tensorboard: whether to write events.
        done: steps of the training so far.
        steps: of an epoch.
    """

    def __init__(self, folder: str | os.PathLike[str], *, tensorboard: bool, done: int, steps: int) -> None:
        self.folder, self.steps = Path(folder), steps
        self._writer: Any = None
        if tensorboard:
            with detr_extra():
                from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / TENSORBOARD_FOLDER), purge_step=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add_step(self, step: int, losses: Mapping[str, float], rate: float) -> None:
        """Add the losses of `step` (of the whole training, from 0) and its learning rate."""
        if self._writer is not None and step % EVERY == 0:
            for name, value in losses.items():
                self._writer.add_scalar(f"step/{name}", value, step)
            self._writer.add_scalar("step/lr", rate, step)

    def add_epoch(self, history: Sequence[Mapping[str, float]]) -> None:
        """Add the last record of `history`, once it is complete.

        Its place among the steps is that of the next one: whoever resumes there takes it back and adds it again, so
        that it is there once, wherever a run is killed.
        """
        write_csv(self.folder / METRICS_FILE, history)
        if self._writer is not None:
            record = history[-1]
            for name, value in record.items():
                if name != "epoch" and not math.isnan(value):
                    self._writer.add_scalar(f"epoch/{name}", value, int(record["epoch"]) * self.steps)
            self._writer.flush()

    def flush(self) -> None:
        """Bring all events to the disk, before a checkpoint says that what they tell is done."""
        if self._writer is not None:
            self._writer.flush()
