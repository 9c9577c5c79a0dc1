"""Errors whose message is for the user: one line that names what is wrong and a way out."""

import os


class UserError(ValueError):
    """An input or a request of the user cannot work; the message says what is wrong and what to do."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or does not go with another; the message names it."""


class DataError(UserError):
    """Something is wrong with the data; the message names the file and the record."""


class DataWarning(UserWarning):
    """Something about the data is doubtful; the message names the file."""


class CheckpointError(UserError):
    """A checkpoint cannot be read or written; the message names the file and what is wrong with it."""


class OccupiedError(CheckpointError):
    """Where a training is to begin, at `path`, there is the checkpoint of an earlier one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(
            f"{path}: holds a training; resume it (resume=True), replace it (overwrite=True), or choose another "
            "directory"
        )
        self.path = path


class ExportError(UserError):
    """A detector cannot be exported as asked."""


class DivergenceError(UserError):
    """A training has left the finite numbers."""


class ProcessError(UserError):
    """Another of the processes that train together has failed."""


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C stopped a training of `epochs` epochs; what is kept of it is in the checkpoint at `path`.

    Kept are the first `kept` epochs and `steps` steps of the next one; with 0 and 0 whatever lies at `path` is as it
    was before.
    """

    def __init__(self, path: str | os.PathLike[str], kept: int, epochs: int, steps: int = 0) -> None:
        what = f"epoch {kept} of {epochs} is" if kept else "no epoch is"
        if steps:
            what = f"all up to step {steps} of epoch {kept + 1} of {epochs} is"
        advice = "; continue with resume=True" if kept or steps else ""
        super().__init__(f"{path}: stopped; {what} kept{advice}")
        self.path, self.kept, self.epochs, self.steps = path, kept, epochs, steps


def one_line(error: BaseException) -> str:
    """Return what `error` says, or its name where it says nothing, as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(text: object, most: int = 400) -> str:
    """Return `text` as a terminal may print it: no control characters, and of more than `most` letters the two ends.

    Example:
        >>> printable("a\\nb" + 5000 * "c", most=11)
        'a\\\\nb...cccc'
    """
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _ends(str(text), most))
    return _ends(safe, most)


def quoted(text: object, most: int = 80) -> str:
    """Return the `repr` of `text`, which has no control characters, or its two ends if it is longer than `most`."""
    return _ends(repr(text), most)


def _ends(text: str, most: int) -> str:
    """Return `text`, or `most` letters of its two ends if it is longer."""
    rest = most - 3
    return text if len(text) <= most else f"{text[: rest - rest // 2]}...{text[len(text) - rest // 2 :]}"
