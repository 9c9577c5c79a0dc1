"""Proposals: the encoder's own guess at the objects, from which a two-stage detector takes its queries."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from deform_attn.detr.config.detector import TransformerConfig
from deform_attn.detr.model.heads import BoxHead, ClassHead, PointBoxHead, Prediction
from deform_attn.detr.model.position import sine_encoding
from deform_attn.detr.model.pyramid import Pyramid
from deform_attn.detr.model.queries import Start


class Proposals(nn.Module):
    """Each pixel proposes a box around itself; the `num_queries` with the best class scores become the queries."""

    def __init__(self, width: int, num_classes: int, num_queries: int, size: float) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.size = size
        self.project = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.class_head = ClassHead(width, num_classes)
        self.box_head = BoxHead(width)

    def forward(self, features: Tensor, pyramid: Pyramid) -> Start:
        """Return the queries chosen from the encoder's `features [N, S, C]`, content and boxes detached."""
        projected = self.project(features)
        scores = self.class_head(projected).max(-1).values.detach()  # [N, S]
        if pyramid.padding_mask is not None:
            scores = scores.masked_fill(pyramid.padding_mask, -math.inf)
        best = scores.topk(_at_most(self.num_queries, scores.shape[1])).indices  # [N, Q]
        chosen = _take(projected, best)
        anchors = _take(_anchors(pyramid, self.size), best)
        prediction = Prediction(self.class_head(chosen), self.box_head(chosen, anchors))
        return Start(chosen.detach(), prediction.boxes.detach(), None, prediction)


class FixedProposals(nn.Module):
    """Proposals as published: their class 0 means any object, and content and position come from their boxes alone."""

    def __init__(self, config: TransformerConfig, num_classes: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.project = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.class_head = ClassHead(width, num_classes)
        self.box_head = PointBoxHead(width)
        self.position = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width))

    def forward(self, features: Tensor, pyramid: Pyramid) -> Start:
        """Return the queries chosen from the encoder's `features [N, S, C]`; the prediction has one class, object."""
        config = self.config
        anchors = _anchors(pyramid, config.proposal_size)  # [N or 1, S, 4]
        # Pixels so near the rim, or so high in the pyramid, are all blank and alike; chosen, they stand for the corner.
        blank = ~((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)  # [N or 1, S, 1]
        if pyramid.padding_mask is not None:
            blank = blank | pyramid.padding_mask[..., None]
        projected = self.project(features.masked_fill(blank, 0))
        scores = self.class_head(projected)[..., 0].detach()  # [N, S]
        best = scores.topk(_at_most(config.num_queries, scores.shape[1])).indices  # [N, Q]
        chosen = _take(projected, best)
        logits = _take(anchors.logit().masked_fill(blank, math.inf), best)
        prediction = Prediction(self.class_head(chosen)[..., :1], (self.box_head.mlp(chosen) + logits).sigmoid())
        boxes = prediction.boxes.detach()
        encoded = sine_encoding(boxes, config.width // 2, config.position_periods, config.position_temperature)
        position, content = self.position(encoded.to(projected.dtype)).chunk(2, -1)  # [N, Q, C] each
        return Start(content, boxes, position, prediction)


def _anchors(pyramid: Pyramid, size: float) -> Tensor:
    """Return a box around each pixel, `size` on the first level and twice as large on each next, `[N or 1, S, 4]`."""
    centres = pyramid.centres
    sizes = size * 2.0 ** torch.arange(len(pyramid.spatial_shapes), dtype=centres.dtype, device=centres.device)
    sizes = pyramid.per_pixel(sizes)[:, None].expand(centres.shape[0], -1, 2)  # [N or 1, S, 2]
    return torch.cat((centres, sizes), dim=-1)


def _take(tensor: Tensor, indices: Tensor) -> Tensor:
    """Return the rows `indices [N, Q]` of `tensor [N or 1, S, C]`: `[N, Q, C]`."""
    tensor = tensor.expand(indices.shape[0], -1, -1)
    return tensor.gather(1, indices[..., None].expand(-1, -1, tensor.shape[-1]))


def _at_most(count: int, size: int | Tensor) -> Any:
    """Return the smaller one; torch.jit.trace has the size as a tensor."""
    return size.clamp(max=count) if isinstance(size, Tensor) else min(count, size)
