"""Pixels of any kind that Pillow reads, as grey or RGB with 8 bits a channel; what has no such meaning is refused."""

from typing import TYPE_CHECKING

from deform_attn.detr.errors import DataError
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

# By Pillow's mode, those that it takes on the way to 8 bits: "P" may have transparency, which only RGBA can take over.
_WAYS: dict[str, tuple[str, ...]] = {
    "L": (), "1": ("L",), "LA": ("L",), "La": ("LA", "L"),
    "RGB": (), "RGBA": ("RGB",), "RGBa": ("RGBA", "RGB"), "RGBX": ("RGB",), "P": ("RGBA", "RGB"), "PA": ("RGBA", "RGB"),
    "CMYK": ("RGB",), "YCbCr": ("RGB",), "LAB": ("RGB",), "HSV": ("RGB",),
}  # fmt: skip
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # "I" has 32, in which Pillow keeps numbers of 16
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_WHITE_IS_ZERO, _SIGNED = 0, 2  # their values
_BAND = 256  # rows that are scaled at a time: the 32 bits it takes would fill twice the memory of the picture
_ADVICE = "convert the image to 8 or 16 bits per channel"


def check_pixels(file: "ImageFile", name: str) -> None:
    """Check, without decoding them, that the pixels of a picture just opened have a meaning.

    Raises:
        DataError: they have not; the message calls the file `name`.
    """
    if file.mode == "F":
        raise DataError(f"{name}: the pixels are floating-point numbers of unknown range; {_ADVICE}")
    if file.mode not in _WAYS and file.mode not in _SIXTEEN_BITS:
        raise DataError(f"{name}: the pixels are in Pillow's mode {file.mode}, which cannot be read here; {_ADVICE}")
    bits, signed = _stored(file)
    if signed and bits < 32:  # Pillow itself writes 16 bits without a sign into 32 with one
        raise DataError(f"{name}: the pixels are signed {bits}-bit numbers of unknown range; {_ADVICE}, unsigned")


def has_more_than_8_bits(file: "ImageFile") -> bool:
    """Return whether a picture just opened stores its channels with more than 8 bits."""
    # Of a PNG in colour Pillow names its bits only in how it is going to decode it.
    raw_mode = file.tile[0][3] if file.format == "PNG" and file.tile else ""
    return file.mode in _SIXTEEN_BITS or _stored(file)[0] > 8 or ";16" in str(raw_mode)


def eight_bits(file: "ImageFile", name: str) -> "Image":
    """Return a picture, which `check_pixels` found good, in mode L or RGB; transparency is dropped.

    Raises:
        DataError: it holds numbers of more than 16 bits or below zero.
    """
    if file.mode in _SIXTEEN_BITS:
        return _scaled_down(file, name)
    file.load()  # what needs no conversion must outlive the open file
    picture: Image = file
    for mode in _WAYS[file.mode]:
        picture = picture.convert(mode)
    return picture


def _scaled_down(file: "ImageFile", name: str) -> "Image":
    """Return a grey picture of up to 16 bits in mode L."""
    with detr_extra():
        import numpy as np
        from PIL import Image

    values = np.asarray(file)  # [H, W]
    low, high = int(values.min()), int(values.max())
    white = 4095 if _stored(file)[0] == 12 else 65535
    if low < 0 or high > white:
        raise DataError(f"{name}: the pixels are numbers from {low} to {high}, expected 0 to {white}; {_ADVICE}")
    grey = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), _BAND):
        band = slice(first, first + _BAND)
        grey[band] = (values[band].astype(np.uint32) * 255 + white // 2) // white
    tags = getattr(file, "tag_v2", None)
    if tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow heeds for 8 bits alone
        grey = 255 - grey
    return Image.fromarray(grey)


def _stored(file: "ImageFile") -> tuple[int, bool]:
    """Return the bits a channel and whether there is a sign, as a TIFF says; (8, False) for other files."""
    tags = getattr(file, "tag_v2", None)
    if tags is None:
        return 8, False
    return max(tags.get(_BITS, (1,))), _SIGNED in tags.get(_SAMPLE_FORMAT, ())
