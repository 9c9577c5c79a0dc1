"""The detector: a model and what is needed to use it."""

from dataclasses import dataclass

from deform_attn.detr.data.base import Category
from deform_attn.detr.model.deformable_detr import DeformableDetr


@dataclass(frozen=True)
class Detector:
    """A model and what is needed to use it: its categories, and the longer side in pixels to which pictures are scaled.

    `max_size` None leaves pictures as they are.
    """

    model: DeformableDetr
    categories: tuple[Category, ...]
    max_size: int | None = None
