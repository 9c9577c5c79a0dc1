"""The optional dependencies of `deform_attn.detr`, and what to say when one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def detr_extra() -> Iterator[None]:
    """Around imports of packages from the `detr` extra: say how to install them if one is missing.

    Raises:
        ModuleNotFoundError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; deform_attn.detr needs it: pip install 'deform-attn[detr]'"
        raise ModuleNotFoundError(message, name=error.name) from error
