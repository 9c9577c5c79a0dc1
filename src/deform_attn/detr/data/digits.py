"""Digit scenes: handwritten digits on photographs, made from what scikit-learn ships, without a download.

The 1,797 digits of `sklearn.datasets.load_digits` (8 x 8 pixels, ten classes) and its two sample photographs are each
cut into three parts that share nothing, one for each split, so that a test scene shows neither a digit nor a piece of
a photograph that any training scene shows.
"""

import functools
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from deform_attn.detr.boxes import xyxy_to_cxcywh
from deform_attn.detr.data.base import Category, coco_from_samples
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.errors import ConfigError
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

Split = Literal["train", "val", "test"]

# From where to where each split reaches: in the shuffled digits, and across the width of each photograph. The test
# scenes get its busiest part, half a pagoda and half a flower: before plain darkness any detector looks good.
_DIGIT_SHARES: dict[Split, tuple[float, float]] = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}
_PHOTOGRAPH_SHARES: dict[Split, tuple[float, float]] = {"train": (0.5, 1.0), "val": (0.0, 0.22), "test": (0.22, 0.5)}

_MOST_DIGITS = 8
_DIGIT_SIZES = (8, 40)  # pixels, the longer side of a digit's box
_BRIGHTNESS = (0.3, 0.6)  # of the background, so that a digit stands out everywhere
_COLOURS = (0.85, 1.0)  # of a digit, each of R, G, B
_CUTOUT = (0.5, 1.0)  # side of a background before scaling, as a share of what fits
_MOST_OVERLAP = 0.05  # of two boxes, as a share of the smaller
_PLACEMENTS = 20  # tried for a digit before the scene goes without it


class DigitScenes:
    """Scenes of 1 to 8 handwritten digits, 8 to 40 pixels large, near-white on a dimmed cut-out of a photograph.

    A training scene depends on `(seed, epoch, index)` alone, so every epoch brings fresh scenes and every run the same
    ones; a validation or test scene depends on `index` alone and is the same always and for everybody. Boxes are tight
    around the ink; two of them overlap by at most a twentieth of the smaller.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        length: number of scenes.
        seed: of the training scenes.
        size: height and width of a scene in pixels, at least 48.

    Example:
        >>> scenes = DigitScenes("test", 200)
        >>> scenes[0].image.shape
        torch.Size([3, 160, 160])
    """

    def __init__(self, split: Split, length: int, *, seed: int = 0, size: int = 160) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split: expected one of {', '.join(get_args(Split))}, got {split!r}")
        if length < 1 or not 0 <= seed < 2**31:
            raise ConfigError(f"expected length >= 1 and seed in [0, 2**31), got length {length} and seed {seed}")
        if size < 48:
            raise ValueError(f"size: expected at least 48 pixels, to hold a digit of 40, got {size}")
        self.split: Split = split
        self.length = length
        self.seed = seed
        self.size = size
        self.epoch = 0
        self.categories = tuple(Category(digit, str(digit)) for digit in range(10))

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Turn to the training scenes of `epoch`; validation and test scenes stay as they are.

        Call it before the loop over a `DataLoader`; workers kept over epochs (`persistent_workers`) would not notice.
        """
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        with detr_extra():
            import numpy as np

        key = (self.seed, self.epoch) if self.split == "train" else (0, 0)
        rng = np.random.default_rng((*key, get_args(Split).index(self.split), index))
        canvas = _background(self.split, self.size, rng)  # [H, W, 3]
        inks = _inks(self.split)
        corners: list[tuple[int, int, int, int]] = []
        labels: list[int] = []
        for _ in range(rng.integers(1, _MOST_DIGITS + 1)):
            label, ink = inks[rng.integers(len(inks))]
            ink = _resize(ink, int(rng.integers(_DIGIT_SIZES[0], _DIGIT_SIZES[1] + 1)))
            place = _free_place(ink.size, corners, self.size, rng)
            if place is None:
                continue
            left, top, right, bottom = place
            alpha = np.asarray(ink, dtype=np.float32)[:, :, None] / 255  # [h, w, 1]
            window = canvas[top:bottom, left:right]
            window += alpha * (rng.uniform(*_COLOURS, size=3).astype(np.float32) - window)
            corners.append(place)
            labels.append(label)
        return Sample(
            image=torch.from_numpy(canvas).permute(2, 0, 1),
            boxes=xyxy_to_cxcywh(torch.tensor(corners, dtype=torch.float32)) / self.size,
            labels=torch.tensor(labels, dtype=torch.int64),
            image_id=index,
            original_size=(self.size, self.size),
        )

    def ground_truth(self) -> dict[str, Any]:
        """Return the boxes of all scenes (of the current epoch) as a COCO dict."""
        return coco_from_samples((self[index] for index in range(self.length)), self.categories)


def digit_numbers(split: Split) -> list[int]:
    """Return the positions in `load_digits` of the digits that scenes of `split` show."""
    with detr_extra():
        import numpy as np
        from sklearn.datasets import load_digits

    # Shuffled, because the file goes 0, 1, ..., 9 over and over and one writer after the other.
    order = np.random.default_rng(0).permutation(len(load_digits().target)).tolist()
    start, stop = (round(share * len(order)) for share in _DIGIT_SHARES[split])
    return sorted(order[start:stop])


def photograph_columns(split: Split, width: int) -> tuple[int, int]:
    """Return the first column, and the one after the last, that scenes of `split` show of a photograph `width` wide."""
    start, stop = _PHOTOGRAPH_SHARES[split]
    return round(start * width), round(stop * width)


@functools.cache
def _inks(split: Split) -> "list[tuple[int, Image]]":
    """Return (digit, opacity) for each digit of `split`: six times enlarged, smooth and cropped to the ink."""
    with detr_extra():
        import numpy as np
        from PIL import Image
        from sklearn.datasets import load_digits

    digits = load_digits()
    inks = []
    for number in digit_numbers(split):
        # A rim of one empty pixel lets strokes at the border of the tile end smoothly.
        tile = Image.fromarray(np.pad(digits.images[number] / 16 * 255, 1).round().astype(np.uint8))
        grey = np.asarray(tile.resize((60, 60), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        # Faint grey becomes nothing and strong grey full ink: then the box ends where a viewer sees the digit end.
        opacity = Image.fromarray((np.clip((grey - 0.25) / 0.5, 0, 1) * 255).round().astype(np.uint8))
        inks.append((int(digits.target[number]), opacity.crop(opacity.getbbox())))
    return inks


@functools.cache
def _photographs(split: Split) -> "list[Image]":
    """Return the part of each photograph that belongs to `split`."""
    with detr_extra():
        from PIL import Image
        from sklearn.datasets import load_sample_images

    parts = []
    for pixels in load_sample_images().images:
        first, end = photograph_columns(split, pixels.shape[1])
        # Cropped before scaling: the filter of a scaled cut-out could reach over the edge into another split.
        parts.append(Image.fromarray(pixels).crop((first, 0, end, pixels.shape[0])))
    return parts


def _background(split: Split, size: int, rng: "np.random.Generator") -> "NDArray[np.float32]":
    """Return a random, dimmed cut-out of a photograph as `[size, size, 3]` in [0, 1]."""
    import numpy as np
    from PIL import Image

    photographs = _photographs(split)
    photograph = photographs[rng.integers(len(photographs))]
    side = int(min(photograph.size) * rng.uniform(*_CUTOUT))
    left, top = (int(rng.integers(extent - side + 1)) for extent in photograph.size)
    cutout = photograph.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    canvas = np.asarray(cutout, dtype=np.float32)  # [H, W, 3]
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
    return canvas * np.float32(rng.uniform(*_BRIGHTNESS) / 255)


def _resize(ink: "Image", size: int) -> "Image":
    """Scale `ink` so that its longer side is `size` pixels."""
    from PIL import Image

    scale = size / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    return ink.resize((width, height), Image.Resampling.BILINEAR)


def _free_place(
    extent: tuple[int, int], taken: list[tuple[int, int, int, int]], size: int, rng: "np.random.Generator"
) -> tuple[int, int, int, int] | None:
    """Return corners for a box of `extent` (width, height) that hardly overlaps those `taken`; None if luck fails."""
    width, height = extent
    for left, top in rng.integers(0, (size - width + 1, size - height + 1), size=(_PLACEMENTS, 2)).tolist():
        place = (left, top, left + width, top + height)
        if all(_overlap(place, other) <= _MOST_OVERLAP for other in taken):
            return place
    return None


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    """Return the intersection of two boxes (corners) as a share of the smaller one."""
    width = max(0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / min(areas)
