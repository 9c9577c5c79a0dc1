"""Errors whose message is for the user: one line that names what is wrong and a way out."""


class UserError(ValueError):
    """What the user gave, or asked for, cannot work."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or does not go with another; the message names it."""


class DataError(UserError):
    """Something is wrong with the data; the message names the file and the record."""


class CheckpointError(UserError):
    """A checkpoint cannot be read or written; the message names the file and what is wrong with it."""


class DivergenceError(UserError):
    """A training has left the finite numbers."""
