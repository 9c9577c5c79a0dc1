"""A batch: pictures padded to one size, the mask that says where, and what is to be found in each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One picture and its boxes.

    `image [3, H, W]` RGB float32 in [0, 1]; `boxes [n, 4]` float32 (cx, cy, w, h) as fractions of the picture's own
    width and height; `labels [n]` int64 from 0; `image_id` as in the data set; `original_size` (H, W) in pixels of the
    picture before any resizing, the frame in which detections are reported.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    original_size: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Samples of any sizes: `images [N, 3, H, W]`, `padding_mask [N, H, W]` bool (True = padding), `samples`."""

    images: Tensor
    padding_mask: Tensor
    samples: tuple[Sample, ...]


def collate(samples: Sequence[Sample], multiple_of: int = 32) -> Batch:
    """Pad `samples` at the right and the bottom to one size, a multiple of `multiple_of` pixels, and stack them."""
    height, width = (-(-max(s.image.shape[axis] for s in samples) // multiple_of) * multiple_of for axis in (1, 2))
    images = samples[0].image.new_zeros(len(samples), 3, height, width)
    padding_mask = torch.ones(len(samples), height, width, dtype=torch.bool)
    for i, sample in enumerate(samples):
        _, h, w = sample.image.shape
        images[i, :, :h, :w] = sample.image
        padding_mask[i, :h, :w] = False
    return Batch(images, padding_mask, tuple(samples))
