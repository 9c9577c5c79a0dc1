"""An annotated picture: what was found in it, drawn at the picture's own size."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deform_attn.detr.data.base import Category
from deform_attn.detr.drawing.canvas import category_colour
from deform_attn.detr.drawing.captions import Rectangle, place_captions
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.model.detections import Detections

if TYPE_CHECKING:
    from PIL.Image import Image

_READABLE = 480  # pixels of the longer side; a smaller picture is enlarged, so that names have room
_LINE, _TEXT = 1 / 400, 1 / 55  # widths of lines and heights of letters, as fractions of the longer side


def annotate(picture: "Image", found: Detections, categories: Sequence[Category]) -> "Image":
    """Return a copy of an RGB `picture` with each box of `found`, its category and its score.

    A picture that is small for writing is enlarged by a whole factor. The most certain detections choose the places of
    their captions first; one for which no place is left has none.
    """
    with detr_extra():
        from matplotlib import get_data_path  # whose font knows the letters of most languages
        from PIL import ImageDraw, ImageFont

    factor = -(-_READABLE // max(picture.size))
    drawn = picture.resize((picture.width * factor, picture.height * factor)) if factor > 1 else picture.copy()
    side = max(drawn.size)
    line, rim = max(2, round(side * _LINE)), max(2, round(side * _TEXT / 5))
    font = ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", max(9, round(side * _TEXT)))
    ascent, descent = font.getmetrics()
    pen = ImageDraw.Draw(drawn)

    order = found.scores.argsort(descending=True, stable=True)
    labels = found.labels[order].tolist()
    boxes: list[Rectangle] = [(x0, y0, x1, y1) for x0, y0, x1, y1 in (found.boxes[order] * factor).tolist()]
    scores = found.scores[order].tolist()
    names = [" ".join(category.name.split()) for category in categories]  # a line break cannot be measured
    texts = [f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    sizes = [(font.getlength(text) + 2 * rim, ascent + descent + rim) for text in texts]
    places = place_captions(boxes, sizes, (0, 0, drawn.width, drawn.height))

    for box, label in reversed(list(zip(boxes, labels, strict=True))):  # the most certain on top
        pen.rectangle(box, outline="black", width=line + 2)  # a dark rim, so that the colour shows on any background
        pen.rectangle((box[0] + 1, box[1] + 1, *_inner(box)), outline=category_colour(label), width=line)
    for box, label, text, place in zip(boxes, labels, texts, places, strict=True):
        if place is None:
            continue
        left, top, right, bottom = place
        colour = category_colour(label)
        if left > box[2] or right < box[0] or top > box[3] or bottom < box[1]:  # away from its box: tie them
            middle = (left + right) / 2, (top + bottom) / 2
            nearest = min(max(middle[0], box[0]), box[2]), min(max(middle[1], box[1]), box[3])
            pen.line((middle, nearest), fill=colour, width=line)
        pen.rectangle(place, fill=colour)
        pen.text((left + rim, top + rim / 2), text, fill="black", font=font)
    return drawn


def _inner(box: Rectangle) -> tuple[float, float]:
    """Return the lower right corner of the rectangle one pixel inside `box`, at least at its upper left one."""
    return max(box[0] + 1, box[2] - 1), max(box[1] + 1, box[3] - 1)
