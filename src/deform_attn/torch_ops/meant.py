"""Which backend is meant where two have kernels for one device: for a call, and for its derivatives later on.

That is so under TRITON_INTERPRET=1 alone, where the GPU kernels take tensors on the CPU, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_meant: ContextVar[str | None] = ContextVar("deform_attn_meant", default=None)


def current() -> str | None:
    """Return the name of the backend that is meant, or None for the first one of the device."""
    return _meant.get()


@contextmanager
def meaning(name: str | None) -> Iterator[None]:
    """Let the ops called inside, on this thread, mean the backend of this name."""
    token = _meant.set(name)
    try:
        yield
    finally:
        _meant.reset(token)
