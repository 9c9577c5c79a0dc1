"""The criterion: how wrong a prediction is."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deform_attn.detr.boxes import cxcywh_to_xyxy, generalized_iou
from deform_attn.detr.config.detector import LossConfig
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.model.deformable_detr import Output
from deform_attn.detr.model.heads import Prediction
from deform_attn.detr.training.matcher import Matcher, pad_targets


class Losses(NamedTuple):
    """The three terms, summed over all layers and divided by the number of boxes, and their weighted sum."""

    classes: Tensor
    boxes: Tensor
    giou: Tensor
    total: Tensor


class Criterion:
    """Matches every decoder layer and the proposals with the objects, and adds up their losses."""

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self.matcher = Matcher(config)

    def class_loss(self, logits: Tensor, expected: Tensor) -> Tensor:
        """Return the sum of the sigmoid focal losses (Lin et al. 2017) of `logits`, where `expected` is 0 or 1."""
        alpha, gamma = self.config.alpha, self.config.gamma
        cross_entropy = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
        missed = (logits.sigmoid() - expected).abs()  # 1 - p of the right answer
        weight = alpha * expected + (1 - alpha) * (1 - expected)
        return (weight * missed**gamma * cross_entropy).sum()

    def box_loss(self, boxes: Tensor, expected: Tensor) -> Tensor:
        """Return the sum of the L1 distances of matched centre-form boxes `[m, 4]`."""
        return (boxes - expected).abs().sum()

    def giou_loss(self, boxes: Tensor, expected: Tensor) -> Tensor:
        """Return the sum of 1 - GIoU of matched centre-form boxes `[m, 4]`."""
        return (1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(expected))).sum()

    def __call__(self, output: Output, samples: Sequence[Sample], count: float | None = None) -> Losses:
        """Return the losses of `output` against the boxes and labels of `samples`, in float32 at least.

        Args:
            output: the model's.
            samples: the batch's, on any device.
            count: the number of boxes to divide by. Default: those of `samples`, at least 1.

        Raises:
            DivergenceError: a prediction is not finite.
        """
        labels = [sample.labels for sample in samples]
        groups = [([*output.auxiliary, Prediction(output.logits, output.boxes)], labels)]
        if output.encoder is not None and output.encoder.logits.shape == output.logits.shape:
            groups[0][0].append(output.encoder)
        elif output.encoder is not None:  # it tells objects from background only
            groups.append(([output.encoder], [torch.zeros_like(picture) for picture in labels]))
        count = max(sum(len(picture) for picture in labels), 1) if count is None else count
        terms = torch.stack([self._terms(layers, labels, samples) for layers, labels in groups]).sum(0) / count
        classes, box, giou = terms.unbind()
        total = self.config.class_weight * classes + self.config.box_weight * box + self.config.giou_weight * giou
        return Losses(classes, box, giou, total)

    def _terms(self, layers: Sequence[Prediction], labels: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
        """Return the three terms `[3]` of layers that match objects of `labels`, before they are divided."""
        logits = _full(torch.stack([layer.logits for layer in layers]))  # [G, N, Q, K]
        boxes = _full(torch.stack([layer.boxes for layer in layers]))  # [G, N, Q, 4]
        targets = pad_targets(labels, [s.boxes for s in samples], logits.device)
        matches = self.matcher(Prediction(logits, boxes), targets)
        expected = torch.zeros_like(logits)
        label = targets.labels[matches.picture, matches.target]
        expected[matches.layer, matches.picture, matches.query, label] = 1
        matched = boxes[matches.layer, matches.picture, matches.query]  # [m, 4]
        wanted = targets.boxes[matches.picture, matches.target]
        return torch.stack(
            [self.class_loss(logits, expected), self.box_loss(matched, wanted), self.giou_loss(matched, wanted)]
        )


def _full(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 at least; less is too little for long sums and for the edges of small boxes."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
