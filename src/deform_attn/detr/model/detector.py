"""The detector: a model and what is needed to use it."""

from dataclasses import dataclass

from deform_attn.detr.data.base import Category
from deform_attn.detr.model.deformable_detr import DeformableDetr


@dataclass(frozen=True)
class Detector:
    """A model with its categories and its image size.

    `max_size` is the longer side, in pixels, to which larger images are scaled down. None leaves images as they are.
    """

    model: DeformableDetr
    categories: tuple[Category, ...]
    max_size: int | None = None
