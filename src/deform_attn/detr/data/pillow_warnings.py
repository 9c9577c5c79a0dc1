"""Pillow's warnings: heard while an image is read here, so that a line can name its file; others see theirs."""

import functools
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from deform_attn.detr.extra import detr_extra

_heard: ContextVar[list[str] | None] = ContextVar("_heard", default=None)


@contextmanager
def heard_warnings() -> Iterator[list[str]]:
    """Give a list that gets the text of each UserWarning of Pillow, in this thread and within the block, unshown.

    `warnings.showwarning` is replaced meanwhile, and calls the one before for all else. No filter changes: what the
    process ignores, makes an error or, as Python does by default, shows once is not heard or not heard again.
    """
    texts: list[str] = []
    listener = _listener()
    token = _heard.set(texts)
    listener.enter()
    try:
        yield texts
    finally:
        listener.leave()
        _heard.reset(token)


class _Listener:
    """What stands for `warnings.showwarning` while a thread reads an image."""

    def __init__(self) -> None:
        with detr_extra():
            import PIL

        self._folder = os.path.dirname(PIL.__file__) + os.sep
        self._lock = threading.Lock()
        self._readers = 0
        self._before: Any = None

    def enter(self) -> None:
        with self._lock:
            self._readers += 1
            if warnings.showwarning is not self:
                self._before, warnings.showwarning = warnings.showwarning, self

    def leave(self) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers and warnings.showwarning is self:
                warnings.showwarning = self._before

    def __call__(
        self, message: Warning | str, category: type[Warning], filename: str, *more: Any, **named: Any
    ) -> None:
        texts = _heard.get()
        if texts is not None and issubclass(category, UserWarning) and filename.startswith(self._folder):
            texts.append(" ".join(str(message).split()))
        else:
            self._before(message, category, filename, *more, **named)


@functools.cache
def _listener() -> _Listener:
    return _Listener()
