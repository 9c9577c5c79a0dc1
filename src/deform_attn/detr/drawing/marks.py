"""Marks: boxes and their captions, drawn onto a picture."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deform_attn.detr.drawing.captions import Rectangle, place_captions
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

# Bright enough for black letters, and told apart by those who see no red or no green.
_OF_CATEGORIES = (
    "#4cc3ff",
    "#ffa033",
    "#7ddc6f",
    "#ff8fb8",
    "#ffe14d",
    "#c5a3ff",
    "#5fe0d0",
    "#d9b38c",
    "#c9d1d9",
    "#ff7f6b",
)
_DASH = 6  # pixels, of dashes and of the gaps between them


class Mark(NamedTuple):
    """A `box` in pixels of the picture, its `colour`, and the `text` of its caption; with None it has none.

    The box of a mark that is `dashed` is drawn in dashes.
    """

    box: Rectangle
    colour: str
    text: str | None = None
    dashed: bool = False


def category_colour(label: int) -> str:
    """Return the colour of the boxes of the category with this label."""
    return _OF_CATEGORIES[label % len(_OF_CATEGORIES)]


@cache
def letters(size: int) -> "FreeTypeFont":
    """Return the font of all pictures, of this size in pixels."""
    with detr_extra():
        from matplotlib import get_data_path  # whose font knows the letters of most languages
        from PIL import ImageFont

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def draw_marks(picture: "Image", marks: Sequence[Mark], *, line: int, size: int) -> None:
    """Draw `marks` onto an RGB `picture`, earlier ones over later ones.

    Earlier ones choose the places of their captions first; one for which no place is left has none.

    Args:
        picture: is changed.
        marks: what to draw.
        line: the width of lines, in pixels.
        size: of the letters, in pixels.
    """
    with detr_extra():
        from PIL import ImageDraw

    pen, font = ImageDraw.Draw(picture), letters(size)
    for mark in reversed(marks):
        if mark.dashed:
            _dash(pen, mark.box, mark.colour)
        else:
            inner = (mark.box[0] + 1, mark.box[1] + 1)
            # A dark rim, so that the colour shows on any background.
            pen.rectangle(mark.box, outline="black", width=line + 2)
            corner = max(inner[0], mark.box[2] - 1), max(inner[1], mark.box[3] - 1)
            pen.rectangle((*inner, *corner), outline=mark.colour, width=line)

    named = [(mark, mark.text) for mark in marks if mark.text is not None]
    (ascent, descent), rim = font.getmetrics(), max(2, round(size / 5))
    sizes = [(font.getlength(text) + 2 * rim, ascent + descent + rim) for _, text in named]
    places = place_captions([mark.box for mark, _ in named], sizes, (0, 0, picture.width, picture.height))
    for (mark, text), place in zip(named, places, strict=True):
        if place is None:
            continue
        (left, top, right, bottom), box = place, mark.box
        if left > box[2] or right < box[0] or top > box[3] or bottom < box[1]:  # away from its box: tie them
            middle = (left + right) / 2, (top + bottom) / 2
            nearest = min(max(middle[0], box[0]), box[2]), min(max(middle[1], box[1]), box[3])
            pen.line((middle, nearest), fill=mark.colour, width=line)
        pen.rectangle(place, fill=mark.colour)
        pen.text((left + rim, top + rim / 2), text, fill="black", font=font)


def _dash(pen: "ImageDraw", box: Rectangle, colour: str) -> None:
    """Draw the sides of `box` in dashes."""
    left, top, right, bottom = map(round, box)
    for x in range(left, right, 2 * _DASH):
        for y in (top, bottom):
            pen.line((x, y, min(x + _DASH, right), y), fill=colour, width=2)
    for y in range(top, bottom, 2 * _DASH):
        for x in (left, right):
            pen.line((x, y, x, min(y + _DASH, bottom)), fill=colour, width=2)
