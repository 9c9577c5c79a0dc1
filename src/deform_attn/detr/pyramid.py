"""The pyramid: feature maps of several strides laid end to end, and where each of their pixels lies."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deform_attn import encoder_reference_points
from deform_attn.detr.position import sine_encoding


@dataclass(frozen=True)
class Pyramid:
    """The layout that all features of one batch share.

    `spatial_shapes` are L pairs (H, W); `centres [N or 1, S, 2]` are the pixels' centres (x, y) as fractions of their
    picture without its padding, the frame of all boxes; `position [N or 1, S, C]` encodes them; `padding_mask [N, S]`
    (True = padding) and `valid_ratios [N, L, 2]`, each level's share (x, y) that is picture, are None without padding.
    """

    spatial_shapes: list[tuple[int, int]]
    centres: Tensor
    position: Tensor
    padding_mask: Tensor | None
    valid_ratios: Tensor | None

    def per_pixel(self, per_level: Tensor) -> Tensor:
        """Return `per_level [L, ...]` repeated for each pixel of its level: `[S, ...]`."""
        return _per_pixel(per_level, self.spatial_shapes)

    def references(self, points: Tensor) -> Tensor:
        """Return `points [N or 1, Q, 2 or 4]`, fractions of the picture, as fractions of each level with its padding.

        The result is `[N, Q, L, 2 or 4]`; without padding all levels agree, and `points` come back as they are.
        """
        if self.valid_ratios is None:
            return points
        ratios = self.valid_ratios.repeat(1, 1, points.shape[-1] // 2)  # [N, L, 2 or 4]
        return points[:, :, None] * ratios[:, None]  # [N, Q, L, 2 or 4]


def _per_pixel(per_level: Tensor, spatial_shapes: Sequence[tuple[int, int]], dim: int = 0) -> Tensor:
    sizes = [height * width for height, width in spatial_shapes]
    repeats = torch.tensor(sizes, device=per_level.device)
    return per_level.repeat_interleave(repeats, dim=dim, output_size=sum(sizes))


def _valid_ratio(mask: Tensor) -> Tensor:
    """Return the share of rows and columns `[N, 2]` as (x, y) that `mask [N, H, W]` leaves to the picture."""
    columns, rows = ~mask[:, 0], ~mask[:, :, 0]
    return torch.stack((columns.float().mean(1), rows.float().mean(1)), dim=-1)


def build_pyramid(
    maps: Sequence[Tensor], masks: Sequence[Tensor | None], level_embedding: Tensor, periods: float, temperature: float
) -> tuple[Tensor, Pyramid]:
    """Lay `maps` end to end.

    Args:
        maps: L tensors `[N, C, H, W]`.
        masks: for each `[N, H, W]` bool, True = padding; all are None, or none is.
        level_embedding: `[L, C]`, added to the position of the level's pixels.
        periods: as in `sine_encoding`.
        temperature: as in `sine_encoding`.

    Returns:
        The features `[N, S, C]` and their pyramid.
    """
    shapes = [(level.shape[2], level.shape[3]) for level in maps]
    features = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # [N, S, C]
    centres = encoder_reference_points(shapes, device=features.device, dtype=features.dtype)[:, :, 0]  # [1, S, 2]
    present = [mask for mask in masks if mask is not None]
    padding_mask = valid_ratios = None
    if present:
        padding_mask = torch.cat([mask.flatten(1) for mask in present], dim=1)  # [N, S]
        valid_ratios = torch.stack([_valid_ratio(mask) for mask in present], dim=1).to(features.dtype)  # [N, L, 2]
        centres = centres / _per_pixel(valid_ratios, shapes, dim=1)  # [N, S, 2]
    position = sine_encoding(centres, features.shape[2] // 2, periods, temperature)  # [N or 1, S, C]
    position = position + _per_pixel(level_embedding, shapes)
    return features, Pyramid(shapes, centres, position, padding_mask, valid_ratios)
