"""The optional dependencies of `deform_attn.export`, and what to say when one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def onnx_extra() -> Iterator[None]:
    """Around imports of packages from the `onnx` extra: say how to install them if one is missing.

    Raises:
        ModuleNotFoundError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; deform_attn.export needs it: pip install 'deform-attn[onnx]'"
        raise ModuleNotFoundError(message, name=error.name) from error
