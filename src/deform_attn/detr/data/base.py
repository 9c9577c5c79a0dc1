"""A detection data set: pictures with boxes, and the categories those boxes belong to."""

from typing import Any, NamedTuple, Protocol

from deform_attn.detr.data.batch import Sample


class Category(NamedTuple):
    """One class: its `id` as in the annotations and its `name`. Its label is its position among the categories."""

    id: int
    name: str


class DetectionData(Protocol):
    """What training and evaluation ask of a data set."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes in order of their labels, 0 first."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def ground_truth(self) -> dict[str, Any]:
        """Return the truth as a COCO dict: `images`, `annotations` (`bbox` as x, y, w, h in pixels), `categories`."""
