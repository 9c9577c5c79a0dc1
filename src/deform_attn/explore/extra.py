"""The optional dependencies of `deform_attn.explore`, and what to say when one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explore_extra() -> Iterator[None]:
    """Around imports of packages from the `explore` extra: say how to install them if one is missing.

    Raises:
        ModuleNotFoundError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; deform_attn.explore needs it: pip install 'deform-attn[explore]'"
        raise ModuleNotFoundError(message, name=error.name) from error
