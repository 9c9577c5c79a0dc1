"""Transforms: small changes of a sample's picture that carry its boxes along.

The functions do one definite thing; the classes are transforms, which draw from a generator what they do. Images stay
float32 in [0, 1] and come back contiguous. `original_size` is what the picture shows, in pixels before any resizing: a
crop makes it smaller, a quarter turn swaps its sides, a resize leaves it alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deform_attn.detr.boxes import area, cxcywh_to_xyxy, xyxy_to_cxcywh
from deform_attn.detr.data.batch import Sample

Transform = Callable[[Sample, Generator], Sample]

_CROPS = 10  # drawn before a picture stays whole whose boxes every one of them would lose

# RGB to luma and two axes of colour, as in the NTSC standard: grey has colour (0, 0) and luma its own value.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def flip_horizontally(sample: Sample) -> Sample:
    """Return `sample` with left and right exchanged."""
    x, y, width, height = sample.boxes.unbind(-1)
    boxes = torch.stack((1 - x, y, width, height), dim=-1)
    return replace(sample, image=sample.image.flip(2).contiguous(), boxes=boxes)


def flip_vertically(sample: Sample) -> Sample:
    """Return `sample` with top and bottom exchanged."""
    x, y, width, height = sample.boxes.unbind(-1)
    boxes = torch.stack((x, 1 - y, width, height), dim=-1)
    return replace(sample, image=sample.image.flip(1).contiguous(), boxes=boxes)


def turn(sample: Sample, quarters: int) -> Sample:
    """Return `sample` turned counter-clockwise by `quarters` of a circle."""
    x, y, width, height = sample.boxes.unbind(-1)
    turned = (
        (x, y, width, height),
        (y, 1 - x, height, width),
        (1 - x, 1 - y, width, height),
        (1 - y, x, height, width),
    )
    rows, columns = sample.original_size
    return replace(
        sample,
        image=sample.image.rot90(quarters, (1, 2)).contiguous(),
        boxes=torch.stack(turned[quarters % 4], dim=-1),
        original_size=(columns, rows) if quarters % 2 else (rows, columns),
    )


def resize(sample: Sample, height: int, width: int) -> Sample:
    """Return `sample` scaled to `height` and `width` pixels, smoothed where it shrinks; its boxes are fractions."""
    image = functional.interpolate(sample.image[None], (height, width), mode="bilinear", antialias=True)[0]
    return replace(sample, image=image.clamp_(0, 1).contiguous())  # rounding may leave the range by a bit


def crop(sample: Sample, left: int, top: int, width: int, height: int, keep: float) -> Sample:
    """Return the part of `sample` from pixel column `left` and row `top` on that is `width` and `height` pixels large.

    A box is clipped to it, and dropped with its label unless at least the share `keep` of its area, above 0, is left.
    """
    _, rows, columns = sample.image.shape
    whole = cxcywh_to_xyxy(sample.boxes.double()) * sample.boxes.new_tensor([columns, rows, columns, rows])  # [n, 4]
    corner = sample.boxes.new_tensor([left, top, left, top])
    size = sample.boxes.new_tensor([width, height, width, height])
    clipped = torch.minimum((whole - corner).clamp(min=0), size)  # [n, 4]
    left_over = area(clipped)  # [n]
    # The slack is for boxes that reach the border, whose corners in float32 may lie a rounding beyond it.
    kept = (left_over > 0) & (left_over >= (keep - 1e-6) * area(whole))  # [n]
    before = sample.original_size
    return replace(
        sample,
        image=sample.image[:, top : top + height, left : left + width].contiguous(),
        boxes=xyxy_to_cxcywh(clipped[kept] / size).float(),
        labels=sample.labels[kept],
        original_size=(max(1, round(before[0] * height / rows)), max(1, round(before[1] * width / columns))),
    )


def change_colours(
    image: Tensor, *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Tensor:
    """Return `image [3, H, W]` with its colours changed, clipped to [0, 1].

    Args:
        image: RGB in [0, 1].
        brightness: factor of every value.
        contrast: factor of each value's distance from the picture's mean luma.
        saturation: factor of each colour's distance from the grey of its luma.
        hue: turns each colour around that grey, in [-0.5, 0.5] of the circle.
    """
    # All four are linear, so they make one matrix and one pass over the pixels.
    cos, sin = (saturation * function(2 * math.pi * hue) for function in (math.cos, math.sin))
    chroma = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    matrix = brightness * contrast * torch.linalg.solve(_YIQ, chroma @ _YIQ)
    pixels = image.flatten(1)  # [3, H*W]
    mean = brightness * (_YIQ[:1] @ pixels.mean(1, keepdim=True))  # [1, 1]
    return torch.addmm((1 - contrast) * mean, matrix, pixels).clamp_(0, 1).view(image.shape)


@dataclass(frozen=True)
class HorizontalFlip:
    """Flips every second picture, by chance."""

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return `sample` changed by chance."""
        return flip_horizontally(sample) if _whole(0, 1, generator) else sample


@dataclass(frozen=True)
class VerticalFlip:
    """Flips every second picture, by chance."""

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return `sample` changed by chance."""
        return flip_vertically(sample) if _whole(0, 1, generator) else sample


@dataclass(frozen=True)
class QuarterTurns:
    """Turns a picture by none to three quarters of a circle."""

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return `sample` changed by chance."""
        quarters = _whole(0, 3, generator)
        return turn(sample, quarters) if quarters else sample


@dataclass(frozen=True)
class Resize:
    """Scales a picture by a factor within `scale`, and further down where its longer side exceeds `max_size` pixels."""

    scale: tuple[float, float] = (1.0, 1.0)
    max_size: int | None = None

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return `sample` changed by chance."""
        _, rows, columns = sample.image.shape
        factor = _uniform(*self.scale, generator)
        if self.max_size is not None:
            factor = min(factor, self.max_size / max(rows, columns))
        height, width = (max(1, round(side * factor)) for side in (rows, columns))
        return sample if (height, width) == (rows, columns) else resize(sample, height, width)


@dataclass(frozen=True)
class Crop:
    """Takes a part of a picture, each side a share within `share` of the whole; see `crop` for `keep`.

    A part in which every box would be lost is drawn anew, and the picture left whole after ten of them.
    """

    share: tuple[float, float]
    keep: float = 0.4

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return `sample` changed by chance."""
        _, rows, columns = sample.image.shape
        for _ in range(_CROPS):
            height, width = (max(1, round(side * _uniform(*self.share, generator))) for side in (rows, columns))
            left, top = _whole(0, columns - width, generator), _whole(0, rows - height, generator)
            part = crop(sample, left, top, width, height, self.keep)
            if len(part.labels) or not len(sample.labels):
                return part
        return sample


@dataclass(frozen=True)
class ColourJitter:
    """Changes the colours of a picture as `change_colours` does.

    Its factors lie within 1 plus or minus `brightness`, `contrast` and `saturation`, the hue between -`hue` and `hue`.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return `sample` changed by chance."""
        ranges = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        factors = {name: _uniform(1 - reach, 1 + reach, generator) for name, reach in ranges.items()}
        hue = _uniform(-self.hue, self.hue, generator)
        return replace(sample, image=change_colours(sample.image, **factors, hue=hue))


@dataclass(frozen=True)
class Compose:
    """Applies `transforms` one after the other."""

    transforms: Sequence[Transform]

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return `sample` changed by chance."""
        for transform in self.transforms:
            sample = transform(sample, generator)
        return sample


def _uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number from [`low`, `high`]."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _whole(low: int, high: int, generator: Generator) -> int:
    """Draw a whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
