"""An annotated picture: what was found in it, drawn at the picture's own size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deform_attn.detr.data.base import Category
from deform_attn.detr.drawing.marks import Mark, category_colour, draw_marks
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
    factor = -(-_READABLE // max(picture.size))
    drawn = picture.resize((picture.width * factor, picture.height * factor)) if factor > 1 else picture.copy()
    side = max(drawn.size)
    order = found.scores.argsort(descending=True, stable=True)
    labels, scores = found.labels[order].tolist(), found.scores[order].tolist()
    names = [" ".join(category.name.split()) for category in categories]  # a line break cannot be measured
    marks = [
        Mark((x0, y0, x1, y1), category_colour(label), f"{names[label]} {score:.2f}")
        for (x0, y0, x1, y1), label, score in zip((found.boxes[order] * factor).tolist(), labels, scores, strict=True)
    ]
    draw_marks(drawn, marks, line=max(2, round(side * _LINE)), size=max(9, round(side * _TEXT)))
    return drawn
