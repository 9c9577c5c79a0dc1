"""A picture file: any kind that Pillow reads, as an upright RGB picture and as a tensor."""

import os
import struct
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deform_attn.detr.data.coco_file import one_line
from deform_attn.detr.errors import DataError
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    from PIL.Image import Image

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error)  # Pillow's; RuntimeError: of AVIF


def read_picture(path: str | os.PathLike[str], where: str) -> "Image":
    """Return the picture at `path` as RGB with 8 bits a channel, upright as its EXIF orientation says.

    Transparency is dropped; 16 bits become 8.

    Args:
        path: the file.
        where: how messages call it.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it cannot be read as a picture.
    """
    with detr_extra():
        from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            return _as_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: this is no readable picture ({one_line(error)}); replace the file") from error


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
