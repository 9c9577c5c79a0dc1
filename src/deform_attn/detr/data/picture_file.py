"""A picture file: whether it can be read and is as large as the annotations say, and its pixels."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deform_attn.detr.config.detector import MAX_PIXELS
from deform_attn.detr.data.orientation import orientation, orientation_once_loaded, sides, turned, upright_size
from deform_attn.detr.data.pillow_limit import lifted_limit
from deform_attn.detr.data.pillow_warnings import heard_warnings
from deform_attn.detr.data.pixels import check_pixels, eight_bits, has_more_than_8_bits
from deform_attn.detr.errors import DataError, DataWarning, one_line
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error)  # Pillow's; RuntimeError: of AVIF
_GAP = 2  # how many times larger than wanted a decoder's reduced picture is at least: what is left is resampled


@dataclass(frozen=True)
class Picture:
    """The content of a picture file: `image` is upright, RGB with 8 bits a channel, and perhaps scaled down.

    `size` is the (width, height) of the whole upright picture. `brightest` is the largest value of a channel, of
    255, if the file has more than 8 bits a channel, else None.
    """

    image: "Image"
    size: tuple[int, int]
    brightest: int | None


def check_header(path: Path, size: tuple[int, int], name: str, max_pixels: int = MAX_PIXELS) -> bool:
    """Check, without decoding it, that the file at `path` is a picture of `size` (width, height) when upright.

    Returns:
        Whether it has more than 8 bits a channel.

    Raises:
        DataError: it is not, it has more than `max_pixels`, or its pixels have no meaning here; the message calls the
            file `name`.
    """
    with _opened(path, name) as file:
        _check_limit(file.size, max_pixels, name)
        _check_size(upright_size(file, name), size, name)
        check_pixels(file, name)
        return has_more_than_8_bits(file)


def read_picture_file(
    path: Path,
    size: tuple[int, int] | None,
    name: str,
    *,
    max_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Return the picture at `path`, upright as its EXIF orientation says, as RGB, without transparency.

    A picture whose longer side has more than `max_size` pixels is scaled down to that; a JPEG much larger is already
    decoded at a fraction of its size. 16 bits become 8.

    Raises:
        DataError: it is of another `size` (width, height) than a given one, has more than `max_pixels`, or cannot be
            decoded; the message calls the file `name`.
    """
    with detr_extra():
        import numpy as np
        from PIL import Image

    with _opened(path, name) as file:
        _check_limit(file.size, max_pixels, name)
        upright = upright_size(file, name)
        if size is not None:
            _check_size(upright, size, name)
        check_pixels(file, name)
        deep = has_more_than_8_bits(file)
        wanted = upright if max_size is None else _scaled(upright, max_size)
        box = None  # of what the decoder gives, in pixels: the whole picture, whose last row and column may be partial
        if wanted != upright:
            width, height = sides(wanted, orientation(file, name))
            reduced = file.draft(None, (_GAP * width, _GAP * height))
            box = None if reduced is None else reduced[1]
        picture = eight_bits(file, name)
        way = orientation_once_loaded(file, name)
    brightest = int(np.max(picture.getextrema())) if deep else None
    if wanted != upright:
        picture = picture.resize(sides(wanted, way), Image.Resampling.BILINEAR, box)
    picture = turned(picture, way)
    return Picture(picture if picture.mode == "RGB" else picture.convert("RGB"), upright, brightest)


def picture_tensor(picture: "Image") -> Tensor:
    """Return an RGB picture as `[3, H, W]` in [0, 1]."""
    with detr_extra():
        import numpy as np

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(255)


@contextmanager
def _opened(path: Path, name: str) -> "Iterator[ImageFile]":
    """Open the picture at `path`; what goes wrong with it in the block is a DataError that calls the file `name`.

    What Pillow warns of meanwhile is a DataWarning if the block ends well, and else dropped for the error.
    """
    with detr_extra():
        from PIL import Image

    try:
        with lifted_limit(), heard_warnings() as heard, Image.open(path) as file:
            yield file
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file; add it or take its record out") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        if path.is_dir():
            raise DataError(f"{name}: is a folder; pass one image") from error
        raise DataError(f"{name}: not a readable image ({one_line(error)}); replace the file") from error
    except MemoryError as error:  # a damaged JPEG 2000 asks for any amount
        advice = "is damaged, or larger than the memory; replace it or scale it down"
        raise DataError(f"{name}: the image {advice}") from error
    if heard:
        # The first alone, so that the checks of the header and of the pixels say one thing.
        text = f"{name}: read, but Pillow warns: {heard[0].rstrip('. ')}; check the image and save it again"
        warnings.warn(text, DataWarning, stacklevel=1)


def _scaled(size: tuple[int, int], max_size: int) -> tuple[int, int]:
    """Return `size` scaled down so that the longer side has `max_size` pixels, or itself if it has no more."""
    scale = max_size / max(size)
    return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def _check_limit(found: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = found
    if width * height > max_pixels:
        raise DataError(
            f"{name}: the image has {width} x {height} = {width * height} pixels, the limit is {max_pixels}; cut it "
            f"into tiles, scale the file down, or pass --max-pixels {width * height} (max_pixels in Python); decoding "
            "takes at least 4 bytes per pixel, or less for a JPEG with --max-size"
        )


def _check_size(found: tuple[int, int], expected: tuple[int, int], name: str) -> None:
    if found != expected:
        raise DataError(
            f"{name}: the image is {found[0]} x {found[1]} pixels large, the annotations say "
            f"{expected[0]} x {expected[1]}; annotate the upright image, and do not resize it afterwards"
        )
