"""Detections: what a detector says about one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deform_attn.detr.boxes import cxcywh_to_xyxy
from deform_attn.detr.data.base import Category
from deform_attn.detr.data.batch import Sample


@dataclass(frozen=True)
class Detections:
    """The boxes found in one picture, in any order.

    `boxes [k, 4]` (left, top, right, bottom) in pixels of the original picture; `scores [k]` in [0, 1]; `labels [k]`
    int64, positions in the data set's `categories`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        k = len(self.scores)
        if self.boxes.shape != (k, 4) or self.scores.shape != (k,) or self.labels.shape != (k,):
            raise ValueError(
                "Detections: expected boxes [k, 4], scores [k] and labels [k], got "
                f"{list(self.boxes.shape)}, {list(self.scores.shape)} and {list(self.labels.shape)}"
            )

    @classmethod
    def of_sample(cls, sample: Sample) -> "Detections":
        """Return what is to be found in `sample`, as if a perfect detector had found it, with scores of 1."""
        height, width = sample.original_size
        boxes = cxcywh_to_xyxy(sample.boxes) * sample.boxes.new_tensor([width, height, width, height])
        return cls(boxes, torch.ones(len(sample.labels)), sample.labels)

    def above(self, min_score: float) -> "Detections":
        """Return those whose score is at least `min_score`."""
        keep = self.scores >= min_score
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep])

    def to_coco(self, image_id: int, categories: Sequence[Category]) -> list[dict[str, Any]]:
        """Return COCO result records: `bbox` is (left, top, width, height) in pixels, `category_id` by label."""
        return [
            {
                "image_id": image_id,
                "category_id": categories[label].id,
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for (left, top, right, bottom), score, label in zip(
                self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True
            )
        ]
