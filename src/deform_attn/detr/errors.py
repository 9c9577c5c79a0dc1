"""Errors whose message is for the user: one line that names what is wrong and a way out."""

import os


class UserError(ValueError):
    """What the user gave, or asked for, cannot work."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or does not go with another; the message names it."""


class DataError(UserError):
    """Something is wrong with the data; the message names the file and the record."""


class CheckpointError(UserError):
    """A checkpoint cannot be read or written; the message names the file and what is wrong with it."""


class OccupiedError(CheckpointError):
    """Where a training is to begin, at `path`, there is the checkpoint of an earlier one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(
            f"{path}: holds a training; go on with it (resume=True), replace it (overwrite=True), or choose another "
            "directory"
        )
        self.path = path


class ExportError(UserError):
    """A detector cannot be exported as asked."""


class DivergenceError(UserError):
    """A training has left the finite numbers."""


class TrainingStopped(KeyboardInterrupt):
    """Ctrl-C stopped a training of `epochs` epochs; the first `kept` of them are in the checkpoint at `path`.

    With `kept` 0 whatever lies at `path` is as it was before.
    """

    def __init__(self, path: str | os.PathLike[str], kept: int, epochs: int) -> None:
        what = f"epoch {kept} of {epochs} is kept; resume=True goes on from there" if kept else "no epoch is kept"
        super().__init__(f"{path}: stopped; {what}")
        self.path, self.kept, self.epochs = path, kept, epochs
