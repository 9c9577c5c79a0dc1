"""The pyramid: feature maps of several strides laid end to end, and where each of their pixels lies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deform_attn import encoder_reference_points
from deform_attn.detr.model.position import sine_encoding


@dataclass(frozen=True)
class Pyramid:
    """The layout that all features of one batch share.

    `spatial_shapes` are L pairs (H, W); `centres [N or 1, S, 2]` are the pixels' centres (x, y) as fractions of their
    picture without its padding, the frame of all boxes, in float32 at least; `position [N or 1, S, C]` encodes them;
    `padding_mask [N, S]` (True = padding) and `valid_ratio [N, 1 or L, 2]`, the share (x, y) of the padded picture or
    of each level that is picture, are None without padding.
    """

    spatial_shapes: list[tuple[int, int]]
    centres: Tensor
    position: Tensor
    padding_mask: Tensor | None
    valid_ratio: Tensor | None

    def per_pixel(self, per_level: Tensor) -> Tensor:
        """Return `per_level [L, ...]` repeated for each pixel of its level: `[S, ...]`."""
        levels = zip(per_level.unbind(), self.spatial_shapes, strict=True)
        return torch.cat([row.expand(height * width, *row.shape) for row, (height, width) in levels])

    def references(self, points: Tensor) -> Tensor:
        """Return `points [N or 1, Q, 2 or 4]`, fractions of the picture, as fractions of each level with its padding.

        The result is `[N, Q, L, 2 or 4]`; without padding all levels agree, and `points` come back as they are.
        """
        if self.valid_ratio is None:
            return points
        ratio = self.valid_ratio.repeat(1, 1, points.shape[-1] // 2)[:, None]  # [N, 1, 1 or L, 2 or 4]
        return (points[:, :, None] * ratio).expand(-1, -1, len(self.spatial_shapes), -1)  # [N, Q, L, 2 or 4]


def valid_ratio(padding_mask: Tensor) -> Tensor:
    """Return the share of columns and rows `[N, 1, 2]` as (x, y) that `padding_mask [N, H, W]` leaves to the picture.

    It is that of the picture itself: on a map of stride 16 the mask is rounded up to whole pixels.
    """
    columns, rows = ~padding_mask[:, 0], ~padding_mask[:, :, 0]
    return torch.stack((columns.float().mean(1), rows.float().mean(1)), dim=-1)[:, None]  # [N, 1, 2]


def build_pyramid(
    maps: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    ratio: Tensor | None,
    level_embedding: Tensor,
    periods: float,
    temperature: float,
    *,
    count_pixels: bool = False,
) -> tuple[Tensor, Pyramid]:
    """Lay `maps` end to end.

    Args:
        maps: L tensors `[N, C, H, W]`.
        masks: for each `[N, H, W]` bool, True = padding; all are None, or none is.
        ratio: `valid_ratio` of the pictures, whose padded sides are multiples of every stride; None without padding, or
            with `count_pixels`.
        level_embedding: `[L, C]`, added to the position of the level's pixels.
        periods: as in `sine_encoding`.
        temperature: as in `sine_encoding`.
        count_pixels: as published, each level's own mask says how many of its pixels the picture covers.

    Returns:
        The features `[N, S, C]` and their pyramid.
    """
    shapes = [(level.shape[2], level.shape[3]) for level in maps]
    features = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # [N, S, C]
    exact = torch.promote_types(features.dtype, torch.float32)  # bfloat16 cannot tell neighbouring pixels apart
    present = [mask for mask in masks if mask is not None]
    padding_mask = torch.cat([mask.flatten(1) for mask in present], dim=1) if present else None  # [N, S]
    if count_pixels:
        centres, encoded, ratio = _counted(shapes, present, features.device, exact)
    else:
        centres = encoder_reference_points(shapes, device=features.device, dtype=exact)[:, :, 0]  # [1, S, 2]
        encoded = centres = centres if ratio is None else centres / ratio.to(exact)  # [N or 1, S, 2]
    position = sine_encoding(encoded.flip(-1), features.shape[2] // 2, periods, temperature)  # [N or 1, S, C], y first
    pyramid = Pyramid(shapes, centres, position, padding_mask, ratio)
    return features, replace(pyramid, position=(position + pyramid.per_pixel(level_embedding)).to(features.dtype))


def _counted(
    shapes: Sequence[tuple[int, int]], masks: Sequence[Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the centres `[N or 1, S, 2]`, the coordinates to encode, and the ratios `[N, L, 2]` of each level's mask.

    What is encoded differs from the centres by the published guard against a division by zero.
    """
    centres, encoded, ratios = [], [], []
    for level, (height, width) in enumerate(shapes):
        size = _size(width, height).to(dtype=dtype, device=device)
        y, x = (torch.arange(side, dtype=dtype, device=device) + 0.5 for side in (height, width))
        pixels = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)
        count = size[None, None]  # [1, 1, 2]
        if masks:
            columns, rows = ~masks[level][:, 0], ~masks[level][:, :, 0]
            count = torch.stack((columns.sum(1), rows.sum(1)), dim=-1)[:, None].to(dtype)  # [N, 1, 2]
        centres.append(pixels / count)  # [N or 1, H*W, 2]
        encoded.append(pixels / (count + 1e-6))
        ratios.append(count / size)
    return torch.cat(centres, 1), torch.cat(encoded, 1), torch.cat(ratios, 1) if masks else None


def _size(width: int | Tensor, height: int | Tensor) -> Tensor:
    """Return the size of a map, `[2]`; torch.jit.trace has its sides as tensors."""
    if isinstance(width, Tensor) and isinstance(height, Tensor):
        return torch.stack((width, height))
    return torch.tensor([width, height])
