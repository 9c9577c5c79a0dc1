"""A detection data set: pictures with boxes, and the categories those boxes belong to."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from deform_attn.detr.boxes import cxcywh_to_xyxy
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.errors import DataError, quoted


class Category(NamedTuple):
    """One category: its `id` in the annotations, and its `name`. Its label is its position among the categories."""

    id: int
    name: str


class DetectionData(Protocol):
    """What training and evaluation ask of a data set."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes in order of their labels, 0 first."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, for a data set whose samples differ from one to the next."""

    def ground_truth(self) -> dict[str, Any]:
        """Return the truth as a COCO dict: `images`, `annotations` (`bbox` as x, y, w, h in pixels), `categories`."""


def listed(names: Sequence[str]) -> str:
    """Return up to eight `names` in words, and how many more there are."""
    rest = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + rest


def coco_categories(categories: Sequence[Category]) -> list[dict[str, Any]]:
    """Return the `categories` of a COCO dict."""
    return [{"id": category.id, "name": category.name} for category in categories]


def check_categories(data: DetectionData, expected: Sequence[Category], name: str, other: str) -> None:
    """Check that the labels of `data`, called `name`, mean what they mean in `other`, whose categories are `expected`.

    Raises:
        DataError: they do not; the message says which categories only one of the two has, or which have another place.
    """
    if tuple(data.categories) == tuple(expected):
        return
    alone = [
        f"only in {place}: {listed([f'{quoted(one.name)} (id {one.id})' for one in ours if one not in theirs])}"
        for place, ours, theirs in ((name, data.categories, expected), (other, expected, data.categories))
        if not set(ours) <= set(theirs)
    ]
    raise DataError(
        f"the categories of {name} and {other} differ; {'; '.join(alone) or 'they are in another order'}; "
        "give both the same categories, with the same ids and names"
    )


def coco_from_samples(samples: Iterable[Sample], categories: Sequence[Category]) -> dict[str, Any]:
    """Return `samples` as a COCO dict, boxes in pixels of the original pictures and annotation ids from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in samples:
        height, width = sample.original_size
        images.append({"id": sample.image_id, "width": width, "height": height})
        corners = cxcywh_to_xyxy(sample.boxes.double()) * sample.boxes.new_tensor([width, height, width, height])
        for (left, top, right, bottom), label in zip(corners.tolist(), sample.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": categories[label].id,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    return {"images": images, "annotations": annotations, "categories": coco_categories(categories)}
