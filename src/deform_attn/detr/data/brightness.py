"""The brightness of pictures with more than 8 bits a channel: too little of it shows numbers of fewer bits in them."""

import warnings
from collections.abc import Sequence

from deform_attn.detr.errors import DataWarning

_DARK = 64  # of 255: where 14 of 16 bits end; cameras that do not use all 16 have 10, 12 or 14


def is_dark(brightest: int) -> bool:
    """Return whether a picture whose brightest channel has this value, of 255, may hold numbers of fewer bits."""
    return brightest <= _DARK


def dark_remark(found: Sequence[tuple[str, int]]) -> str | None:
    """Return what is to be said if all pictures of `found` are dark, else None.

    A dark picture among others is a picture of something dark, and one that is black says nothing.

    Args:
        found: name of each picture, and value of its brightest channel, of 255.
    """
    name, brightest = max(found, key=lambda one: one[1], default=("", 0))
    if not brightest or not is_dark(brightest):
        return None
    others = f", and no pixel of the {len(found) - 1} other ones read does" if len(found) > 1 else ""
    return (
        f"{name}: no pixel of this 16-bit image exceeds {brightest / 255:.0%} of the range{others}, so it is read as "
        "nearly black; if the camera has 12 bits, multiply the pixels by 16 (14 bits: by 4)"
    )


def warn_if_dark(found: Sequence[tuple[str, int]]) -> None:
    """Warn of what `dark_remark` says.

    Warns:
        DataWarning: all pictures are dark.
    """
    remark = dark_remark(found)
    if remark is not None:
        warnings.warn(remark, DataWarning, stacklevel=3)
