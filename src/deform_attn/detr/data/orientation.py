"""The orientation of a picture: how its EXIF data say to turn it, and its size once it is upright."""

import struct
from typing import IO, TYPE_CHECKING

from deform_attn.detr.errors import DataError, one_line
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
_LYING = (5, 6, 7, 8)  # its values for pictures whose rows are stored as columns
_WIDTH, _HEIGHT = 256, 257  # TIFF's tags
_METADATA = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # names of PNG's texts that may hold an orientation


def upright_size(file: "ImageFile", name: str) -> tuple[int, int]:
    """Return the (width, height) that a picture just opened has when upright; its pixels are rarely decoded for it.

    Raises:
        DataError: see `orientation`.
    """
    # Pillow turns a TIFF itself when it loads it, and some versions give the upright size before that, too.
    tags = getattr(file, "tag_v2", None)
    width, height = file.size if tags is None else (tags[_WIDTH], tags[_HEIGHT])
    return sides((width, height), orientation(file, name))


def sides(size: tuple[int, int], way: object) -> tuple[int, int]:
    """Return the (width, height) that a picture of that orientation has once turned, or before that; it is the same."""
    return size[::-1] if way in _LYING else size


def orientation(file: "ImageFile", name: str) -> object:
    """Return what a picture's EXIF or XMP says of its orientation; 1 is upright, and so is all that is not 2 to 8.

    Raises:
        DataError: the EXIF data are damaged; the message calls the file `name`.
    """
    with detr_extra():
        from PIL import Image

    if file.format == "PNG" and file.fp is not None and _has_metadata_behind_pixels(file.fp):
        file.load()  # Pillow looks behind the pixels only after it has decoded them
    try:
        exif = Image.Image.getexif(file)  # the method of PngImageFile would decode each PNG without EXIF
    except (SyntaxError, ValueError, struct.error) as error:
        raise DataError(f"{name}: the EXIF data cannot be read ({one_line(error)}); remove or repair them") from error
    return exif.get(_ORIENTATION, 1)


def orientation_once_loaded(file: "ImageFile", name: str) -> object:
    """Return what is left to turn of a picture that is loaded, as an orientation; a TIFF is turned by Pillow."""
    return 1 if hasattr(file, "tag_v2") else orientation(file, name)


def turned(picture: "Image", way: object) -> "Image":
    """Return a `picture` of that orientation upright."""
    with detr_extra():
        from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return picture.transpose(turns[way]) if way in turns else picture


def _has_metadata_behind_pixels(png: IO[bytes]) -> bool:
    """Return whether a PNG has metadata behind its pixels that may hold an orientation; its position stays."""
    position = png.tell()
    try:
        png.seek(8)
        behind = False
        while len(head := png.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            behind |= kind == b"IDAT"
            begin = png.read(min(length, 32)) if behind and kind in (b"tEXt", b"zTXt", b"iTXt") else b""
            if behind and (kind == b"eXIf" or begin.startswith(_METADATA)):
                return True
            png.seek(length - len(begin) + 4, 1)  # 4: the checksum
        return False
    finally:
        png.seek(position)
