"""A file that is there in full or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes `path` when the block ends and vanishes when it raises.

    The temporary file lies in the folder of `path` (made if missing), because a rename is atomic only within one file
    system, and keeps its suffix, from which many writers choose the format. A reader, or a run that is killed
    half-way, sees the old file or the new one, never a part.

    Example:
        >>> with atomic_path("run/model.pt") as temporary:  # doctest: +SKIP
        ...     torch.save(model.state_dict(), temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own lets the writer create the file, with the permissions that the user's umask asks for.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


@contextmanager
def naming(path: str | os.PathLike[str], consequence: str) -> Iterator[None]:
    """Around the writing of `path`: let an error of the system say which file it was, and what follows from it.

    A full disk shows when a file is written to, where Python no longer knows its name.

    Raises:
        OSError: the same, with `path` as its file name.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; {consequence}", os.fspath(path)) from error
