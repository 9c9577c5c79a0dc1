"""A detection: a box that a model found, and the decoder query that it came from."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Detection:
    """One box of one picture.

    Numbers may be those of numpy or torch, too; it keeps Python's.

    Args:
        query: which of the decoder's queries found it, counted from 0.
        box: (left, top, right, bottom) in pixels of the picture.
        label: what to call it.
        score: in [0, 1], or None.

    Raises:
        TypeError: one of them is not the number that it should be.
        ValueError: `query` is negative, `box` is not four finite numbers in that order, or `score` is not finite.

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
        self._make_plain("query", operator.index, "a whole number from 0", "count from the first query")
        self._make_plain("box", _floats, "four finite numbers in pixels", "leave it out")
        if self.score is not None:
            self._make_plain("score", float, "a finite number or None", "leave it out")
        if self.query < 0:
            raise ValueError(f"Detection.query: expected a number from 0, got {self.query}; count from the first query")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"Detection.score: expected a finite number or None, got {self.score}; leave it out")
        if len(self.box) != 4 or not all(map(math.isfinite, self.box)):
            raise ValueError(f"Detection.box: expected four finite numbers in pixels, got {self.box}; leave it out")
        left, top, right, bottom = self.box
        if right < left or bottom < top:
            raise ValueError(
                f"Detection.box: expected (left, top, right, bottom), got {self.box}; "
                "turn centre and size into corners first"
            )

    def _make_plain(self, name: str, convert: Callable[[Any], Any], expected: str, fix: str) -> None:
        """Make a field plain numbers, which alone can be written to a page."""
        given = getattr(self, name)
        try:
            object.__setattr__(self, name, convert(given))
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several numbers
            raise TypeError(f"Detection.{name}: expected {expected}, got {given!r}; {fix}") from error

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


def _floats(numbers: Any) -> tuple[float, ...]:
    return tuple(map(float, numbers))
