"""Pillow's limit on the size of pictures: lifted for those that are opened here, in force for everybody else."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from deform_attn.detr.extra import detr_extra

_CHECK = "_decompression_bomb_check"  # of PIL.Image, whose readers call it by that name
_lifted: ContextVar[bool] = ContextVar("_lifted", default=False)


@contextmanager
def lifted_limit() -> Iterator[None]:
    """Within the block, and in no other thread, Pillow neither warns of a picture's size nor refuses it.

    `Image.MAX_IMAGE_PIXELS` would do that for the whole process, and a thread of the user's may open pictures of
    strangers meanwhile.
    """
    _install()
    token = _lifted.set(True)
    try:
        yield
    finally:
        _lifted.reset(token)


@functools.cache
def _install() -> None:
    """Let Pillow's check pass where it is lifted; where a version has no such check, its limit stays in force."""
    with detr_extra():
        from PIL import Image

    check = getattr(Image, _CHECK, None)
    if check is None:
        return

    def check_unless_lifted(*size: Any, **options: Any) -> None:
        if not _lifted.get():
            check(*size, **options)

    setattr(Image, _CHECK, check_unless_lifted)
