"""Pictures with patches, and detectors tiny enough to learn them in a test."""

from dataclasses import replace
from typing import Any

import torch

from deform_attn.detr.config.detector import AttentionKind, BackboneConfig, ModelConfig, TransformerConfig
from deform_attn.detr.data.base import Category, coco_from_samples
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.model.norm import NormKind


class Patches:
    """Pictures with bright and dark patches on grey."""

    categories: tuple[Category, ...] = (Category(1, "bright"), Category(2, "dark"))

    def __init__(self, length: int) -> None:
        self.samples = [self.draw(i) for i in range(length)]
        self.epochs: list[int] = []

    def draw(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        image, boxes = torch.full((3, 64, 80), 0.5), []
        for i in range(2):
            width, height = torch.randint(12, 28, (2,), generator=generator).tolist()
            left, top = 40 * i + int(torch.randint(12, (1,), generator=generator)), 4 + 10 * i
            image[:, top : top + height, left : left + width] = float(1 - i)
            boxes.append([(left + width / 2) / 80, (top + height / 2) / 64, width / 80, height / 64])
        return Sample(image, torch.tensor(boxes), torch.tensor([0, 1]), index, (64, 80))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def ground_truth(self) -> dict[str, Any]:
        return coco_from_samples(self.samples, self.categories)


class Assorted(Patches):
    """Pictures of different sizes with 0, 1 or 2 patches."""

    def draw(self, index: int) -> Sample:
        sample, count = super().draw(index), index % 3
        height, width = 40 + 8 * (index % 4), 80 - 4 * (index % 5)
        shrunk = sample.boxes * torch.tensor([80 / width, 64 / height]).repeat(2)
        image = sample.image[:, :height, :width]
        return Sample(image, shrunk[:count].clamp(max=1), sample.labels[:count], index, (height, width))


def detector(attention: AttentionKind = "deformable", *, norm: NormKind = "batch", **settings: Any) -> Detector:
    torch.manual_seed(0)
    transformer = TransformerConfig(
        attention=attention, width=32, num_heads=2, feedforward_dim=32, encoder_layers=1, decoder_layers=2,
        num_queries=8,
    )  # fmt: skip
    backbone = BackboneConfig(channels=(8, 16, 24, 32), norm=norm)
    config = ModelConfig(2, backbone=backbone, transformer=replace(transformer, **settings))
    return Detector(build_model(config), Patches.categories)
