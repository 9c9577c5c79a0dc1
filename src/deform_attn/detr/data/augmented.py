"""An augmented data set: another one whose pictures are changed at random, differently in every epoch."""

from typing import Any

import torch

from deform_attn.detr.config.detector import AugmentConfig
from deform_attn.detr.data.base import Category, DetectionData, coco_from_samples
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.data.transforms import (
    ColourJitter,
    Compose,
    Crop,
    HorizontalFlip,
    QuarterTurns,
    Resize,
    Transform,
    VerticalFlip,
)
from deform_attn.detr.extra import detr_extra


class Augmented:
    """The samples of `data`, changed as `config` says.

    What happens to a sample follows from `(seed, epoch, index)` alone: it is the same in whichever process it is read
    and whatever was read before, and so in a training that was stopped and resumed.

    Args:
        data: what to change; its own epoch is set along.
        config: what to do; by default nothing is done, and a sample is that of `data`.
        seed: of all chance.

    Example:
        >>> from deform_attn.detr.data.digits import DigitScenes
        >>> scenes = Augmented(DigitScenes("train", 8), AugmentConfig(quarter_turns=True, crop=(0.5, 0.5)), seed=0)
        >>> scenes[0].image.shape
        torch.Size([3, 80, 80])
    """

    def __init__(self, data: DetectionData, config: AugmentConfig, seed: int) -> None:
        self.data = data
        self.config = config
        self.seed = seed
        self.epoch = 0
        transforms = _transforms(config)
        self._transform = Compose(transforms) if transforms else None

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes of the data set within."""
        return self.data.categories

    def __len__(self) -> int:
        return len(self.data)

    def set_epoch(self, epoch: int) -> None:
        """Turn to the samples of `epoch`.

        Call it before the loop over a `DataLoader`; workers kept over epochs (`persistent_workers`) would not notice.
        """
        self.epoch = epoch
        self.data.set_epoch(epoch)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        if self._transform is None:
            return sample
        with detr_extra():
            import numpy as np

        # Mixed well, because neighbouring seeds, epochs and indices must not share their chance.
        mixed = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)
        return self._transform(sample, torch.Generator().manual_seed(int(mixed[0])))

    def ground_truth(self) -> dict[str, Any]:
        """Return the boxes of all changed samples of the current epoch as a COCO dict."""
        return coco_from_samples((self[index] for index in range(len(self))), self.categories)


def _transforms(config: AugmentConfig) -> list[Transform]:
    """Return what `config` turns on: the crop first, which leaves less to do, the colours last."""
    jitter = ColourJitter(config.brightness, config.contrast, config.saturation, config.hue)
    steps: list[tuple[bool, Transform]] = [
        (config.crop != (1.0, 1.0), Crop(config.crop, config.keep)),
        (config.max_size is not None or config.resize != (1.0, 1.0), Resize(config.resize, config.max_size)),
        (config.horizontal_flip, HorizontalFlip()),
        (config.vertical_flip, VerticalFlip()),
        (config.quarter_turns, QuarterTurns()),
        (jitter != ColourJitter(), jitter),
    ]
    return [transform for wanted, transform in steps if wanted]
