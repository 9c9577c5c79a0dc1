"""A picture file: whether it can be read and is as large as the annotations say, and its pixels as a tensor."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deform_attn.detr.errors import DataError, one_line
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    from PIL.Image import Image

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error)  # Pillow's; RuntimeError: of AVIF
_ORIENTATION = 0x0112  # EXIF's tag
_LYING = (5, 6, 7, 8)  # its values for pictures whose rows are stored as columns


def check_header(path: Path, size: tuple[int, int], name: str) -> None:
    """Check, without decoding it, that the file at `path` is a picture of `size` (width, height) when upright.

    Raises:
        DataError: it is not; the message calls the file `name`.
    """
    with _opened(path, name) as file:
        found = file.size
        # A PNG may have its EXIF behind the pixels, where Pillow looks only after it has decoded them: not worth it if
        # all is well without.
        if file.format != "PNG" or "exif" in file.info or found != size:
            found = found[::-1] if file.getexif().get(_ORIENTATION) in _LYING else found
    _check_size(found, size, name)


def read_rgb(path: Path, size: tuple[int, int] | None, name: str) -> "Image":
    """Return the picture at `path`, upright as its EXIF orientation says and as RGB with 8 bits a channel.

    Transparency is dropped; 16 bits become 8.

    Raises:
        DataError: it is of another `size` (width, height) than a given one, or cannot be decoded; the message calls the
            file `name`.
    """
    with detr_extra():
        from PIL import ImageOps

    with _opened(path, name) as file:
        picture = _as_rgb(ImageOps.exif_transpose(file))
    if size is not None:
        _check_size(picture.size, size, name)
    return picture


@contextmanager
def _opened(path: Path, name: str) -> "Iterator[Image]":
    """Open the picture at `path`; what goes wrong with it in the block is a DataError that calls the file `name`."""
    with detr_extra():
        from PIL import Image

    try:
        with Image.open(path) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{name}: there is no such file; add it or take its record out") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: this is no readable picture ({one_line(error)}); replace the file") from error


def _check_size(found: tuple[int, int], expected: tuple[int, int], name: str) -> None:
    if found != expected:
        raise DataError(
            f"{name}: the picture is {found[0]} x {found[1]} pixels large, the annotations say "
            f"{expected[0]} x {expected[1]}; annotate the upright picture, and do not resize it afterwards"
        )


def picture_tensor(picture: "Image", max_size: int | None) -> Tensor:
    """Return an RGB picture as `[3, H, W]` in [0, 1], scaled down to `max_size` pixels if its longer side is larger."""
    with detr_extra():
        import numpy as np
        from PIL import Image

    if max_size is not None and max(picture.size) > max_size:
        scale = max_size / max(picture.size)
        smaller = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(smaller, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(255)


def _as_rgb(picture: "Image") -> "Image":
    """Return `picture` as RGB with 8 bits a channel."""
    with detr_extra():
        import numpy as np
        from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 rather than scale
        picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).round().astype(np.uint8))
    if picture.mode == "P":  # its palette may hold transparency, which only RGBA can take over
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
