"""The folder of a checkpoint: its files change all together, whenever the process is killed.

New files are written to a hidden folder inside. One rename makes that the decided one; from then on reading prefers
what lies there. Then its files move to their places, `config.json` first: while it is still in the decided folder,
nothing has moved, and once it is not, what is not there either has moved or never was. Nothing else in the folder is
touched, and the folder itself stays: it may be a link, a mount or somebody's current directory.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.files import naming

FILES = ("config.json", "model.safetensors", "training.json", "training.safetensors")
METRICS_FILE = "metrics.csv"
"""What a training writes beside its checkpoint: a row of figures for each epoch."""

_STAGED, _DECIDED, _CLAIM = ".deform-attn-new", ".deform-attn-decided", ".deform-attn-claim"


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
    """Put `files`, of which `config.json` is one, in the place of all FILES in `folder`.

    Raises:
        OSError: they cannot be written, it names the file; the old ones are still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _move_in(folder)  # what an earlier process decided and did not finish
    staged = folder / _STAGED
    _remove(staged)
    try:
        staged.mkdir()
        for name, content in files.items():
            with naming(folder / name, "the checkpoint before it is kept"), (staged / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a rename may otherwise outrun the content when the power fails
        staged.rename(folder / _DECIDED)
    finally:
        _remove(staged)
    _move_in(folder)


def locate(folder: Path, name: str) -> Path:
    """Return where the file `name` of the newest whole checkpoint in `folder` lies, or would lie."""
    decided = folder / _DECIDED
    return decided / name if (decided / FILES[0]).exists() or (decided / name).exists() else folder / name


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; choose a folder")
    folder.mkdir(parents=True, exist_ok=True)


def _move_in(folder: Path) -> None:
    decided = folder / _DECIDED
    if (decided / FILES[0]).exists():
        for name in FILES:
            if not (decided / name).exists():
                (folder / name).unlink(missing_ok=True)
    for name in FILES:
        if (decided / name).exists():
            (decided / name).replace(folder / name)
    _remove(decided)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
