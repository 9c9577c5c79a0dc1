"""Heads: from a query's features to class logits and a box."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deform_attn.detr.model.position import MLP

PRIOR = 0.01
"""The score that every class has at the start: most queries see background, and the focal loss wants to know."""


class Prediction(NamedTuple):
    """`logits [..., Q, K]`, one sigmoid a class, and `boxes [..., Q, 4]` (cx, cy, w, h) as fractions of the picture."""

    logits: Tensor
    boxes: Tensor


class ClassHead(nn.Linear):
    """A linear layer that starts from the prior."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        nn.init.constant_(self.bias, -math.log((1 - PRIOR) / PRIOR))


class BoxHead(nn.Module):
    """A perceptron that corrects a reference box in the space before the sigmoid; it starts from no correction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = MLP(width, width, 4, num_layers=3)
        last = self.mlp[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, content: Tensor, reference: Tensor) -> Tensor:
        """Return the boxes `[..., Q, 4]` of `content [..., Q, C]` around `reference [..., Q, 4]`."""
        boxes: Tensor = (self.mlp(content) + reference.logit(eps=1e-4)).sigmoid()
        return boxes


class PointBoxHead(BoxHead):
    """A box head whose reference may also be a point, around which it then places a box of its own size."""

    def forward(self, content: Tensor, reference: Tensor) -> Tensor:
        """Return the boxes `[..., Q, 4]` of `content [..., Q, C]` around `reference [..., Q, 2 or 4]`."""
        # Both sides are clamped by themselves, as published: 1 becomes 1 / 1e-5.
        logits = torch.log(reference.clamp(1e-5, 1) / (1 - reference).clamp(1e-5, 1))
        boxes: Tensor = (self.mlp(content) + nn.functional.pad(logits, (0, 4 - logits.shape[-1]))).sigmoid()
        return boxes
