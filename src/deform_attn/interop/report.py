"""The report of `patch`: what was replaced, by which rule, what was left and why."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType


@dataclass(frozen=True)
class Row:
    """One deformable attention: its dotted name in the model, its class, and its rule if one knows it.

    `reason` is why it was left, or None where it was replaced.
    """

    name: str
    kind: str
    rule: str | None
    reason: str | None


@dataclass(frozen=True)
class Report:
    """What `patch` did to each deformable attention; `str()` gives a table, and the end of a `with` block undoes it."""

    replaced: list[Row]
    left: list[Row]
    _undo: Callable[[], None] = field(repr=False, compare=False)

    def __enter__(self) -> "Report":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._undo()

    def __str__(self) -> str:
        rows = [("module", "class", "rule", "verdict")]
        for row in (*self.replaced, *self.left):
            verdict = "replaced" if row.reason is None else f"left: {row.reason}"
            rows.append((row.name or "(the model)", row.kind, row.rule or "-", verdict))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in rows]
        total = len(self.replaced) + len(self.left)
        return "\n".join([f"{len(self.replaced)} of {total} deformable attentions replaced", *lines])
