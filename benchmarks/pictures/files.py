"""Files of pictures: small PNGs, so that a page with many of them loads soon."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from deform_attn.detr.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

MOST_BYTES = 250_000
_PALETTES = (256, 192, 128, 96, 64)  # colours, as many as the limit allows


def save_picture(picture: "Image", path: str | os.PathLike[str]) -> Path:
    """Write `picture` as a PNG of at most `MOST_BYTES`, with fewer colours where it takes that, and return its path."""
    from PIL import Image

    encoded = _png(picture.convert("RGB"))
    for colours in _PALETTES:
        if len(encoded) <= MOST_BYTES:
            break
        encoded = _png(picture.convert("RGB").quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))
    if len(encoded) > MOST_BYTES:
        raise ValueError(f"picture: expected at most {MOST_BYTES} bytes, got {len(encoded)}; make it smaller")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)
    return Path(path)


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Write a figure of matplotlib as `save_picture` does, and return its path."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as picture:
        return save_picture(picture, path)


def _png(picture: "Image") -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
