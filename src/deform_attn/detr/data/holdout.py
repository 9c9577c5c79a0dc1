"""A hold-out: some pictures of a data set kept apart, to validate on where it has no split for that."""

import zlib
from typing import Any

from deform_attn.detr.data.base import Category, DetectionData
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.errors import DataError


class Part:
    """The samples of `data` at `indices`."""

    def __init__(self, data: DetectionData, indices: list[int]) -> None:
        self.data = data
        self.indices = indices

    @property
    def categories(self) -> tuple[Category, ...]:
        """All classes of the data set, also those of which this part shows nothing."""
        return self.data.categories

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Turn to the samples of `epoch`."""
        self.data.set_epoch(epoch)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.data[self.indices[index]]

    def ground_truth(self) -> dict[str, Any]:
        """Return the COCO dict of this part alone."""
        truth = self.data.ground_truth()
        images = [truth["images"][i] for i in self.indices]
        ids = {image["id"] for image in images}
        return truth | {"images": images, "annotations": [a for a in truth["annotations"] if a["image_id"] in ids]}


def hold_out(data: DetectionData, share: float) -> tuple[Part, Part]:
    """Return `data` in two parts: what is left, and a `share` of it, at least one picture, that is held out.

    Which pictures those are depends on their file names alone, so that every call chooses the same ones.

    Args:
        data: whose ground truth lists the pictures in the order of its samples, with their `file_name`.
        share: of the pictures, above 0 and below 1.

    Raises:
        DataError: there are fewer than two pictures.
    """
    images = data.ground_truth()["images"]
    if len(images) < 2:
        raise DataError(f"hold_out: expected at least 2 images, got {len(images)}; train without it")
    count = min(max(round(share * len(images)), 1), len(images) - 1)
    order = sorted(range(len(images)), key=lambda i: (zlib.crc32(images[i]["file_name"].encode()), i))
    return Part(data, sorted(order[count:])), Part(data, sorted(order[:count]))
