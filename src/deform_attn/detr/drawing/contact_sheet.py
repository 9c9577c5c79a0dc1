"""A contact sheet: pictures in rows, with titles above them and a legend below."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from deform_attn.detr.drawing.marks import letters
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

PANEL = 500
"""Pixels, the most that a picture on the sheet is wide."""

_MOST_COLUMNS = 4
_GAP = 12  # pixels between pictures, and around the legend
_TITLE, _LEGEND = 18, 17  # pixels, the sizes of letters
_DARK = "#333333"  # like most pictures, so that bright colours show


class Entry(NamedTuple):
    """A line of the legend: what `colour` means."""

    colour: str
    text: str
    dashed: bool = False


def contact_sheet(pictures: "Sequence[Image]", titles: Sequence[str] = (), legend: Sequence[Entry] = ()) -> "Image":
    """Return a picture with all `pictures`, at least one, in rows of at most four.

    Args:
        pictures: RGB, none wider than PANEL.
        titles: of the pictures, or none.
        legend: what colours mean.
    """
    with detr_extra():
        from PIL import Image, ImageDraw

    columns = min(len(pictures), _MOST_COLUMNS)
    width = max(columns, 2) * (PANEL + _GAP)  # of one picture, too, title and legend have room
    above = _TITLE + _GAP if titles else _GAP
    row = above + max(picture.height for picture in pictures)
    rows = _in_rows(legend, width - 4 * _GAP)
    height = math.ceil(len(pictures) / columns) * row
    sheet = Image.new("RGB", (width, height + _GAP + (len(rows) * 2 * _LEGEND + 2 * _GAP if rows else 0)), "white")
    pen = ImageDraw.Draw(sheet)
    left = (width - columns * (PANEL + _GAP)) // 2
    for i, picture in enumerate(pictures):
        middle = left + (i % columns) * (PANEL + _GAP) + (PANEL + _GAP) // 2
        corner = middle - picture.width // 2, (i // columns) * row + above
        pen.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + picture.width, corner[1] + picture.height), "black")
        sheet.paste(picture, corner)
        if titles:
            pen.text((middle, corner[1] - _GAP // 2), titles[i], "black", letters(_TITLE), anchor="ms")
    if rows:
        _write_legend(pen, rows, width // 2, height + 2 * _GAP)
    return sheet


def _entry_width(entry: Entry) -> int:
    return round(letters(_LEGEND).getlength(entry.text)) + 4 * _LEGEND


def _in_rows(legend: Sequence[Entry], width: int) -> list[list[Entry]]:
    """Return the entries in rows, none wider than `width` unless a single one is."""
    rows: list[list[Entry]] = []
    for entry in legend:
        if rows and sum(map(_entry_width, rows[-1])) + _entry_width(entry) <= width:
            rows[-1].append(entry)
        else:
            rows.append([entry])
    return rows


def _write_legend(pen: "ImageDraw", rows: Sequence[Sequence[Entry]], middle: int, top: int) -> None:
    half = max(sum(map(_entry_width, row)) for row in rows) // 2
    area = middle - half - _GAP, top - _GAP // 2, middle + half + _GAP, top + len(rows) * 2 * _LEGEND
    pen.rounded_rectangle(area, radius=_GAP // 2, fill=_DARK)
    for i, row in enumerate(rows):
        x, y = middle - (sum(map(_entry_width, row)) - _LEGEND) // 2, top + i * 2 * _LEGEND + _LEGEND - _GAP // 4
        for entry in row:
            pieces = ((0, 0.8), (1.2, 2)) if entry.dashed else ((0, 2),)
            for start, end in pieces:
                pen.line((x + start * _LEGEND, y, x + end * _LEGEND, y), fill=entry.colour, width=3)
            pen.text((x + 2.5 * _LEGEND, y), entry.text, "white", letters(_LEGEND), anchor="lm")
            x += _entry_width(entry)
