"""Boxes: their two forms, their areas and how well two of them overlap.

`cxcywh` is (centre x, centre y, width, height), `xyxy` is (left, top, right, bottom); both in any unit.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Return the corners of centre-form `boxes [..., 4]`."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Return the centre form of corner-form `boxes [..., 4]`."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Return the areas `[...]` of corner-form `boxes [..., 4]`; 0 for a box that is turned inside out."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def _intersection_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = area(torch.cat((top_left, bottom_right), dim=-1))
    return intersection, area(first) + area(second) - intersection


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return intersection over union `[...]` of corner-form boxes `[..., 4]` that broadcast; 0 for an empty union."""
    intersection, union = _intersection_and_union(first, second)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalised IoU `[...]` in [-1, 1] of corner-form boxes `[..., 4]` that broadcast (Rezatofighi 2019).

    IoU less the share of the smallest enclosing box that neither of the two covers.
    """
    tiny = torch.finfo(first.dtype).tiny
    intersection, union = _intersection_and_union(first, second)
    top_left = torch.minimum(first[..., :2], second[..., :2])
    bottom_right = torch.maximum(first[..., 2:], second[..., 2:])
    enclosing = area(torch.cat((top_left, bottom_right), dim=-1))
    return intersection / union.clamp(min=tiny) - (enclosing - union) / enclosing.clamp(min=tiny)
