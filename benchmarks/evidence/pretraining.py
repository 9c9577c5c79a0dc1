"""Pretraining: a backbone that knows digits before any attention is trained, as the paper's knew ImageNet."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deform_attn.detr.data.batch import Sample, collate
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.model.deformable_detr import DeformableDetr

BATCH, RATE = 16, 2e-3


def pretrain(model: DeformableDetr, data: DigitScenes, judge: DigitScenes, epochs: int) -> float:
    """Train the backbone of `model` to classify the digits of `data`, and return its accuracy on those of `judge`.

    A linear layer, which is thrown away, sees the mean of the last map's pixels in each box. Where a box is, the
    backbone is told: to find boxes is left to the detector.
    """
    backbone = model.backbone.train()
    head = nn.Linear(backbone.channels[-1], len(data.categories))
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-4)
    steps = len(data) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * steps)
    for epoch in range(epochs):
        data.set_epoch(epoch)
        for step in range(steps):
            samples = [data[i] for i in range(step * BATCH, (step + 1) * BATCH)]
            logits, labels = _classify(model, head, samples)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            schedule.step()
    backbone.eval()
    right = total = 0
    with torch.no_grad():
        for first in range(0, len(judge), BATCH):
            logits, labels = _classify(model, head, [judge[i] for i in range(first, min(first + BATCH, len(judge)))])
            right, total = right + int((logits.argmax(-1) == labels).sum()), total + len(labels)
    backbone.train()
    return right / total


def _classify(model: DeformableDetr, head: nn.Linear, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Return logits and labels of all boxes of the samples."""
    images = (collate(samples).images - model.mean) / model.std
    features = model.backbone(images.contiguous(memory_format=torch.channels_last), None)[-1].features  # [N, C, H, W]
    means = [
        pixels @ _inside(sample.boxes, features.shape[-2:]).T
        for pixels, sample in zip(features.flatten(2), samples, strict=True)
    ]
    return head(torch.cat(means, dim=1).T), torch.cat([sample.labels for sample in samples])


def _inside(boxes: Tensor, shape: torch.Size) -> Tensor:
    """Return the weights of the pixels of a map in the mean of each box `[k, H*W]`: what shares of them are in it."""
    weights = []
    for axis, side in ((1, shape[0]), (0, shape[1])):
        edges = torch.arange(side + 1) / side
        first, last = boxes[:, axis] - boxes[:, axis + 2] / 2, boxes[:, axis] + boxes[:, axis + 2] / 2
        overlap = torch.minimum(last[:, None], edges[1:]) - torch.maximum(first[:, None], edges[:-1])  # [k, side]
        weights.append(overlap.clamp(min=0))
    rows, columns = weights
    inside = (rows[:, :, None] * columns[:, None]).flatten(1)  # [k, H*W]
    return inside / inside.sum(-1, keepdim=True)
