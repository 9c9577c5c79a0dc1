"""A detection: a box that a model found, and the decoder query that it came from."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Detection:
    """One box of one picture.

    Args:
        query: which of the decoder's queries found it, counted from 0.
        box: (left, top, right, bottom) in pixels of the picture.
        label: what to call it.
        score: in [0, 1], or None.

    Raises:
        ValueError: `query` is negative, or `box` is not four finite numbers in that order.

    Example:
        >>> from deform_attn.explore import Detection
        >>> Detection(query=3, box=(10, 20, 60, 80), label="tree", score=0.912).caption
        'tree 0.91'
    """

    query: int
    box: tuple[float, float, float, float]
    label: str = ""
    score: float | None = None

    def __post_init__(self) -> None:
        if self.query < 0:
            raise ValueError(f"Detection.query: expected a number from 0, got {self.query}; count from the first query")
        if len(self.box) != 4 or not all(map(math.isfinite, self.box)):
            raise ValueError(f"Detection.box: expected four finite numbers in pixels, got {self.box}; leave it out")
        left, top, right, bottom = self.box
        if right < left or bottom < top:
            raise ValueError(
                f"Detection.box: expected (left, top, right, bottom), got {self.box}; "
                "turn centre and size into corners first"
            )

    @property
    def caption(self) -> str:
        """Its label and score in words."""
        score = "" if self.score is None else f"{self.score:.2f}"
        return f"{self.label} {score}".strip() or f"query {self.query}"

    @property
    def centre(self) -> tuple[float, float]:
        """The middle (x, y) of its box."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2
