"""The matcher: which query answers for which object (Carion et al. 2020)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deform_attn.detr.boxes import cxcywh_to_xyxy, generalized_iou
from deform_attn.detr.config.detector import LossConfig
from deform_attn.detr.errors import DivergenceError
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.model.heads import Prediction


class Targets(NamedTuple):
    """The objects of a batch, padded to T for each picture: `labels [N, T]`, `boxes [N, T, 4]`, and how many count."""

    labels: Tensor
    boxes: Tensor
    counts: list[int]


class Matches(NamedTuple):
    """Pairs of a query and an object, as indices of the same length: layer, picture, query, object."""

    layer: Tensor
    picture: Tensor
    query: Tensor
    target: Tensor


def pad_targets(labels: Sequence[Tensor], boxes: Sequence[Tensor], device: torch.device) -> Targets:
    """Return the pictures' `labels [n]` and `boxes [n, 4]` as one batch on `device`."""
    counts = [len(picture) for picture in labels]
    padded_labels = torch.zeros(len(counts), max(counts, default=0), dtype=torch.int64)
    padded_boxes = torch.zeros(len(counts), max(counts, default=0), 4)
    for i, count in enumerate(counts):
        padded_labels[i, :count] = labels[i]
        padded_boxes[i, :count] = boxes[i]
    return Targets(padded_labels.to(device), padded_boxes.to(device), counts)


class Matcher:
    """Finds for each layer and picture the pairs with the least sum of costs."""

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return `[G, N, Q, T]`: the focal loss of giving query q the class of object t less that of none."""
        alpha, gamma = self.config.alpha, self.config.gamma
        score = logits.sigmoid()
        present = alpha * (1 - score) ** gamma * -torch.nn.functional.logsigmoid(logits)
        absent = (1 - alpha) * score**gamma * -torch.nn.functional.logsigmoid(-logits)
        chosen = labels[None, :, None].expand(len(logits), -1, logits.shape[2], -1)  # [G, N, Q, T]
        return (present - absent).gather(-1, chosen)

    def cost(self, prediction: Prediction, targets: Targets) -> Tensor:
        """Return the weighted sum of class, L1 and GIoU costs `[G, N, Q, T]`."""
        boxes, objects = (
            prediction.boxes[..., :, None, :],
            targets.boxes[None, :, None],
        )  # [G, N, Q, 1, 4], [1, N, 1, T, 4]
        return (
            self.config.class_weight * self.class_cost(prediction.logits, targets.labels)
            + self.config.box_weight * (boxes - objects).abs().sum(-1)
            - self.config.giou_weight * generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(objects))
        )

    @torch.no_grad()
    def __call__(self, prediction: Prediction, targets: Targets) -> Matches:
        """Match G layers at once.

        Args:
            prediction: `logits [G, N, Q, K]`, `boxes [G, N, Q, 4]`.
            targets: the objects of the N pictures.

        Returns:
            The matches, each object of each picture once a layer (as far as there are queries).

        Raises:
            DivergenceError: a cost is not finite, because the training has diverged or an input was NaN.
        """
        with detr_extra():
            from scipy.optimize import linear_sum_assignment

        costs = self.cost(prediction, targets).cpu()  # one transfer for all layers and pictures
        if not costs.isfinite().all():
            raise DivergenceError(
                "a prediction or an object's box is not finite; a smaller learning rate may help (--lr)"
            )
        table = costs.numpy()
        rows: list[list[int]] = [[], [], [], []]
        for layer in range(len(table)):
            for picture, count in enumerate(targets.counts):
                queries, objects = linear_sum_assignment(table[layer, picture, :, :count])
                rows[0] += [layer] * len(queries)
                rows[1] += [picture] * len(queries)
                rows[2] += queries.tolist()
                rows[3] += objects.tolist()
        return Matches(*torch.tensor(rows, dtype=torch.int64).to(prediction.logits.device))
