"""The folder of a checkpoint: what a save writes there is old or new as a whole, whenever the process is killed.

All files are written to a hidden folder inside before the first is replaced, each by one rename. `config.json` goes
before `model.safetensors` changes and comes last: while it is there, the two belong together. Nothing else in the
folder is touched, and the folder itself stays: it may be a link, a mount or somebody's current directory.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.files import naming

CONFIG, MODEL, TRAINING = "config.json", "model.safetensors", "training.safetensors"
METRICS_FILE = "metrics.csv"
"""What a training writes beside its checkpoint: a row of figures for each epoch."""

FORMER = "training.json"
"""A part of the state of trainings of earlier versions."""

_STAGED, _CLAIM = ".deform-attn-new", ".deform-attn-claim"
_UNFINISHED = ".deform-attn-decided"
"""Where a training of a version before the single training file kept the files that it was about to move."""


def prepare(folder: Path) -> None:
    """Make `folder` and check that files can be written to it.

    Raises:
        CheckpointError: there is something else than a directory.
        OSError: it cannot be made or written to.
    """
    _make(folder)
    _remove(folder / _STAGED)
    (folder / _STAGED).mkdir()
    (folder / _STAGED).rmdir()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes from claiming it for a while; one that is killed claims nothing any more.

    Before anything else is done there: `prepare` would take away what another process is about to write. Systems
    without POSIX locks, and file systems that refuse them, let everybody in.

    Raises:
        CheckpointError: another process has claimed it, or there is something else than a directory.
        OSError: it cannot be made or written to.
    """
    _make(folder)
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    with (folder / _CLAIM).open("w") as file:
        try:
            # Of this process alone: its workers, which may outlive it for a moment, do not hold it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                message = f"{folder}: another training writes there at the moment; wait for it, or choose another"
                raise CheckpointError(message) from error
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        try:
            yield
        finally:
            (folder / _CLAIM).unlink(missing_ok=True)


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` in the place of those with their names in `folder`.

    Args:
        folder: made if missing.
        files: `config.json` after `model.safetensors`, and before both what a reader needs while there is neither.

    Raises:
        OSError: they cannot be written, it names the file; the old ones are still there.
    """
    staged = folder / _STAGED
    _remove(staged)
    try:
        staged.mkdir(parents=True)
        for name, content in files.items():
            with naming(folder / name, "the checkpoint before it is kept"), (staged / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a rename may otherwise outrun the content when the power fails
        for name in files:
            if name == MODEL:
                (folder / CONFIG).unlink(missing_ok=True)
            (staged / name).replace(folder / name)
    finally:
        _remove(staged)


def check_finished(folder: Path) -> None:
    """Raise CheckpointError if an earlier version was stopped between the files of a checkpoint in `folder`."""
    if (folder / _UNFINISHED).exists():
        raise CheckpointError(
            f"{folder}: an earlier version of deform-attn was stopped while it replaced this checkpoint; "
            f"move all files of {folder / _UNFINISHED} into {folder}, and remove the empty folder"
        )


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; choose a folder")
    folder.mkdir(parents=True, exist_ok=True)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
