"""Proposals: the encoder's own guess at the objects, from which a two-stage detector takes its queries."""

import math

import torch
from torch import Tensor, nn

from deform_attn.detr.heads import BoxHead, ClassHead, Prediction
from deform_attn.detr.pyramid import Pyramid


class Proposals(nn.Module):
    """Each pixel proposes a box around itself; the `num_queries` with the best class scores become the queries."""

    def __init__(self, width: int, num_classes: int, num_queries: int, size: float) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.size = size
        self.project = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.class_head = ClassHead(width, num_classes)
        self.box_head = BoxHead(width)

    def forward(self, features: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor, Prediction]:
        """Choose the queries.

        Args:
            features: `[N, S, C]` of the encoder.
            pyramid: their layout.

        Returns:
            The queries' content `[N, Q, C]` and boxes `[N, Q, 4]`, both detached, and their prediction for the loss.
        """
        projected = self.project(features)
        scores = self.class_head(projected).max(-1).values.detach()  # [N, S]
        if pyramid.padding_mask is not None:
            scores = scores.masked_fill(pyramid.padding_mask, -math.inf)
        best = scores.topk(min(self.num_queries, scores.shape[1])).indices  # [N, Q]
        chosen = _take(projected, best)
        prediction = Prediction(self.class_head(chosen), self.box_head(chosen, _take(self._anchors(pyramid), best)))
        return chosen.detach(), prediction.boxes.detach(), prediction

    def _anchors(self, pyramid: Pyramid) -> Tensor:
        """Return a box around each pixel, twice as large on each level as on the one before, `[N or 1, S, 4]`."""
        centres = pyramid.centres
        sizes = self.size * 2.0 ** torch.arange(len(pyramid.spatial_shapes), dtype=centres.dtype, device=centres.device)
        sizes = pyramid.per_pixel(sizes)[:, None].expand(centres.shape[0], -1, 2)  # [N or 1, S, 2]
        return torch.cat((centres, sizes), dim=-1)


def _take(tensor: Tensor, indices: Tensor) -> Tensor:
    """Return the rows `indices [N, Q]` of `tensor [N or 1, S, C]`: `[N, Q, C]`."""
    tensor = tensor.expand(indices.shape[0], -1, -1)
    return tensor.gather(1, indices[..., None].expand(-1, -1, tensor.shape[-1]))
