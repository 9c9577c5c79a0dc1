"""The model: backbone, pyramid, transformer (Deformable DETR, Zhu et al. 2020)."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deform_attn.detr.boxes import cxcywh_to_xyxy
from deform_attn.detr.config.detector import ModelConfig
from deform_attn.detr.data.batch import Batch
from deform_attn.detr.errors import ConfigError
from deform_attn.detr.model.backbone import (
    Backbone,
    Level,
    TransformersBackbone,
    build_backbone,
    halve_mask,
    resize_mask,
)
from deform_attn.detr.model.detections import Detections
from deform_attn.detr.model.heads import Prediction
from deform_attn.detr.model.norm import PaddedGroupNorm, blank
from deform_attn.detr.model.pyramid import build_pyramid, valid_ratio
from deform_attn.detr.model.transformer import Transformer
from deform_attn.evaluating import evaluating

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, which pretrained backbones expect."""


@dataclass(frozen=True)
class Output:
    """What the model predicts: `logits [N, Q, K]` and `boxes [N, Q, 4]` (cx, cy, w, h) as fractions of each picture.

    `auxiliary` has the same from every earlier decoder layer; `encoder` from the proposals of a two-stage model.
    """

    logits: Tensor
    boxes: Tensor
    auxiliary: tuple[Prediction, ...]
    encoder: Prediction | None


class Projection(nn.Module):
    """A convolution to the transformer's width, and GroupNorm: 1x1, or 3x3 with stride 2 for an additional level."""

    def __init__(self, in_channels: int, width: int, groups: int | None, *, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv = nn.Conv2d(in_channels, width, 3, 2, 1) if halve else nn.Conv2d(in_channels, width, 1)
        self.norm = PaddedGroupNorm(groups or (max(width // 8, 8) if width % 64 == 0 else 8), width)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, level: Level) -> Level:
        """Return the level at the transformer's width."""
        mask = halve_mask(level.padding_mask) if self.halve else level.padding_mask
        features = self.conv(blank(level.features, level.padding_mask))
        # Laid out channels_last, torch's GroupNorm subtracts squares that are nearly equal where the mean is large.
        return Level(self.norm(features.contiguous(), mask), mask)


class DeformableDetr(nn.Module):
    """A model that detects objects of `config.num_classes` classes.

    `config.transformer.attention` chooses between Deformable DETR on several levels, on one level, and dense attention.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        transformer, strides = config.transformer, config.levels
        self.backbone: Backbone = build_backbone(config.backbone, strides)
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _check_strides(strides, self.backbone.strides)
        if isinstance(self.backbone, TransformersBackbone):
            config = replace(config, backbone=replace(config.backbone, source=self.backbone.source))
        self.config = config
        given = len(self.backbone.strides)
        widths = [*self.backbone.channels, self.backbone.channels[-1]] + [transformer.width] * (len(strides) - given)
        self.projections = nn.ModuleList(
            Projection(widths[i], transformer.width, config.norm_groups, halve=i >= given) for i in range(len(strides))
        )
        self.level_embedding = nn.Parameter(torch.randn(len(strides), transformer.width))
        self.transformer = Transformer(transformer, len(strides), config.num_classes)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> Output:
        """Predict boxes and classes.

        Args:
            images: `[N, 3, H, W]` RGB in [0, 1].
            padding_mask: `[N, H, W]` bool, True = padding, at the right and the bottom. None: no padding.

        Returns:
            The logits and boxes of every layer.
        """
        exact = self.config.exact_padding
        if exact:
            images, padding_mask = _to_whole_pixels(images, padding_mask, self.config.levels[-1])
        images = blank((images - self.mean) / self.std, padding_mask)
        seen_mask = padding_mask if exact else None
        levels = self.backbone(images.contiguous(memory_format=torch.channels_last), seen_mask)
        projected: list[Level] = []
        for i, projection in enumerate(self.projections):
            # The first level beyond the backbone comes from its last map, each later one from the level before.
            source = levels[i] if i < len(levels) else levels[-1] if i == len(levels) else projected[-1]
            projected.append(projection(source))
        maps = [level.features for level in projected]
        config = self.config.transformer
        features, pyramid = build_pyramid(
            maps,
            [
                level.padding_mask if exact else resize_mask(padding_mask, level.features.shape[-2:])
                for level in projected
            ],
            None if seen_mask is None else valid_ratio(seen_mask),
            self.level_embedding,
            config.position_periods,
            config.position_temperature,
            count_pixels=not exact,
        )
        predictions, proposed = self.transformer(features, pyramid)
        *auxiliary, (logits, boxes) = predictions
        return Output(logits, boxes, tuple(auxiliary), proposed)

    @torch.no_grad()
    def detect(self, batch: Batch, limit: int | None = None) -> list[Detections]:
        """Return the `limit` most certain detections of each picture, in pixels of its original size.

        Default: as many as there are queries, each of which finds one object, but at least 100.

        The model is in evaluation mode meanwhile.
        """
        with evaluating(self):
            output = self(batch.images.to(self.mean.device), batch.padding_mask.to(self.mean.device))
        return postprocess(output, [sample.original_size for sample in batch.samples], limit)


def _to_whole_pixels(images: Tensor, padding_mask: Tensor | None, stride: int) -> tuple[Tensor, Tensor | None]:
    """Pad to multiples of `stride`, so that every pixel of every map covers a whole square; without padding no mask."""
    height, width = images.shape[-2:]
    rest = (0, -width % stride, 0, -height % stride)
    # A compiled model keeps a mask that it is given: it cannot look at numbers, nor ask anew for each size. One that
    # torch.jit.trace records cannot ask whether there is padding at all.
    compiling, tracing = torch.compiler.is_compiling(), torch.jit.is_tracing()  # type: ignore[attr-defined]
    if tracing or (compiling and padding_mask is not None) or any(rest):
        if padding_mask is None:
            padding_mask = torch.zeros(images.shape[0], height, width, dtype=torch.bool, device=images.device)
        images, padding_mask = nn.functional.pad(images, rest), nn.functional.pad(padding_mask, rest, value=True)
    elif padding_mask is not None and not padding_mask.any():
        padding_mask = None
    return images, padding_mask


def _check_strides(wanted: tuple[int, ...], given: tuple[int, ...]) -> None:
    if not given or given != wanted[: len(given)]:
        has = ", ".join(map(str, given)) or "none"
        raise ConfigError(
            f"strides: {wanted} must begin with strides of the backbone, which has {has} of them; change strides or "
            "the backbone"
        )
    for before, stride in zip(wanted[len(given) - 1 :], wanted[len(given) :], strict=False):
        if stride != 2 * before:
            raise ConfigError(
                f"strides: after the backbone's {given} each must be twice the one before, got {stride} after {before}"
            )


def postprocess(output: Output, original_sizes: list[tuple[int, int]], limit: int | None = None) -> list[Detections]:
    """Return the `limit` best pairs of query and class of each picture, boxes in pixels of `original_sizes` (H, W)."""
    return detections_of(best_pairs(output, limit), output, original_sizes)


class Pairs(NamedTuple):
    """The best pairs of query and class of each picture, the best first, each field `[N, k]`."""

    scores: Tensor
    queries: Tensor
    labels: Tensor


def best_pairs(output: Output, limit: int | None = None) -> Pairs:
    """Return the `limit` best pairs of query and class of each picture; default: as `DeformableDetr.detect`."""
    num_queries, num_classes = output.logits.shape[1:]
    limit = max(num_queries, 100) if limit is None else limit
    scores, order = output.logits.sigmoid().flatten(1).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :limit], order[:, :limit]
    return Pairs(scores, order // num_classes, order % num_classes)


def detections_of(pairs: Pairs, output: Output, original_sizes: list[tuple[int, int]]) -> list[Detections]:
    """Return the pairs of each picture with the boxes of their queries, in pixels of `original_sizes` (H, W)."""
    corners = cxcywh_to_xyxy(output.boxes).clamp(0, 1)
    found = []
    for i, (height, width) in enumerate(original_sizes):
        scale = corners.new_tensor([width, height, width, height])
        found.append(Detections(corners[i, pairs.queries[i]] * scale, pairs.scores[i], pairs.labels[i]))
    return found


def build_model(config: ModelConfig) -> DeformableDetr:
    """Return a new model with random weights. A backbone with a directory has the weights in it."""
    return DeformableDetr(config)
