"""Files: writing one in full or not at all, and reading one with a clear message when it is missing or damaged."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.extra import detr_extra


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to, which becomes `path` when the block ends and vanishes when it raises.

    The temporary file lies in the folder of `path` (made if missing), because a rename is atomic only within one file
    system, and keeps its suffix, from which many writers choose the format. A reader, or a run that is killed
    half-way, sees the old file or the new one, never a part.

    Raises:
        OSError: it cannot be written; an older file is still there.

    Example:
        >>> with atomic_path("run/model.pt") as temporary:  # doctest: +SKIP
        ...     torch.save(model.state_dict(), temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own lets the writer create the file, with the permissions that the user's umask asks for.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        with naming(path, "it is not written"):
            yield temporary
            os.replace(temporary, path)


def read_tensors(file: Path, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file whose names begin with `prefix`, by the rest of their names.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    with _opened(file) as content:
        names = content.keys()
        return {name.removeprefix(prefix): content.get_tensor(name) for name in names if name.startswith(prefix)}


def read_metadata(file: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file, and read none of its tensors.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    with _opened(file) as content:
        return content.metadata() or {}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    with detr_extra():
        from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; pass the directory of a checkpoint")
    try:
        with safe_open(file, framework="pt") as content:
            yield content
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); copy it again, or pass another checkpoint") from error


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        inside = sorted(file.parent.glob(f"*/{file.name}"))  # such as the checkpoint in the folder of the demo
        advice = f"did you mean {inside[0].parent}?" if inside else "pass the directory of a checkpoint"
        raise CheckpointError(f"{file}: {error.strerror}; {advice}") from error
    except (ValueError, RecursionError) as error:  # no JSON, or no text at all
        raise CheckpointError(f"{file}: damaged ({error}); copy it again, or pass another checkpoint") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{file}: damaged (expected an object, found {type(values).__name__}); pass another checkpoint"
        )
    return values


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file that holds `values`."""
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


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
