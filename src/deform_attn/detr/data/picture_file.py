"""A picture file: any kind that Pillow reads, as an upright RGB picture and as a tensor."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deform_attn.detr.data.coco_file import one_line
from deform_attn.detr.errors import DataError
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    from PIL.Image import Image

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error)  # Pillow's; RuntimeError: of AVIF


def read_rgb(path: Path, size: tuple[int, int] | None, name: str) -> "Image":
    """Return the picture at `path`, upright as its EXIF orientation says and as RGB with 8 bits a channel.

    Transparency is dropped; 16 bits become 8.

    Raises:
        DataError: it is missing, cannot be decoded, or is of another `size` (width, height) than a given one; the
            message calls the file `name`.
    """
    with detr_extra():
        from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = _as_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError as error:
        raise DataError(f"{name}: there is no such file; add it or take its record out") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: this is no readable picture ({one_line(error)}); replace the file") from error
    if size is not None and picture.size != size:
        raise DataError(
            f"{name}: the picture is {picture.width} x {picture.height} pixels large, the annotations say "
            f"{size[0]} x {size[1]}; annotate the upright picture, and do not resize it afterwards"
        )
    return picture


def picture_tensor(picture: "Image", max_size: int | None) -> Tensor:
    """Return an RGB picture as `[3, H, W]` in [0, 1], scaled down to `max_size` pixels if its longer side is larger."""
    with detr_extra():
        import numpy as np
        from PIL import Image

    if max_size is not None and max(picture.size) > max_size:
        scale = max_size / max(picture.size)
        smaller = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(smaller, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


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
