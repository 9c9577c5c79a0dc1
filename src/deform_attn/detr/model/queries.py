"""Queries: what the decoder starts from, and the learned ones of a one-stage detector."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from deform_attn.detr.model.heads import Prediction
from deform_attn.detr.model.pyramid import Pyramid


class Start(NamedTuple):
    """What the first decoder layer gets: `content [N, Q, C]` and `boxes [N, Q, 4]`, or points `[N, Q, 2]`.

    `position [N, Q, C]` is that of every layer; None: each encodes its boxes. `prediction` is the proposals', if any.
    """

    content: Tensor
    boxes: Tensor
    position: Tensor | None
    prediction: Prediction | None


class Queries(nn.Module):
    """The queries of a one-stage detector: learned content and learned boxes, the same for every picture."""

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.randn(num_queries, width))
        corners = torch.cat((torch.rand(num_queries, 2) * 0.9 + 0.05, torch.full((num_queries, 2), 0.2)), dim=-1)
        self.box_logits = nn.Parameter(corners.logit())

    def forward(self, features: Tensor, pyramid: Pyramid) -> Start:
        """Return the queries for each picture of `features [N, S, C]`."""
        batch = features.shape[0]
        boxes = self.box_logits.float().sigmoid().expand(batch, -1, -1)
        return Start(self.content.expand(batch, -1, -1), boxes, None, None)


class FixedQueries(nn.Module):
    """Learned queries as published: content, a position for all layers, and a point that follows from the position."""

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_queries, 2 * width))
        self.reference = nn.Linear(width, 2)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def forward(self, features: Tensor, pyramid: Pyramid) -> Start:
        """Return the queries for each picture of `features [N, S, C]`."""
        batch = features.shape[0]
        position, content = (half.expand(batch, -1, -1) for half in self.embedding.chunk(2, -1))  # [N, Q, C] each
        logits = self.reference(position)
        points = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()  # [N, Q, 2]
        return Start(content, points, position, None)
