"""The result: one JSON file to which each run adds its rows, and the table of all of them beside it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import table

Row = dict[str, Any]
_COLUMNS = ("milliseconds", "ratio", "device", "host", "bytes a second", "peak bytes", "relative error")


class Result:
    """The rows in the file `path`, all of one machine and of one state of the sources.

    Args:
        path: of the JSON; None: nothing is written.
        setting: what all rows have in common. A file with another one is refused.
    """

    def __init__(self, path: Path | None, setting: dict[str, Any]) -> None:
        self.path, self.setting = path, setting
        self.rows: list[Row] = []
        if path is not None and path.exists():
            found = json.loads(path.read_text())
            for name, value in setting.items():
                if found.get(name) != value:
                    raise SystemExit(
                        f"{path}: measured with {name} {found.get(name)!r}, now it is {value!r}; choose another --out"
                    )
            self.rows = found["rows"]

    def has(self, key: Row) -> bool:
        """Return whether there is a row with all entries of `key`."""
        return any(key.items() <= row.items() for row in self.rows)

    def replace(self, key: Row, rows: Sequence[Row]) -> None:
        """Put `rows` in the place of those with all entries of `key`, and write both files, each in one step."""
        self.rows = [row for row in self.rows if not key.items() <= row.items()] + [{**key, **row} for row in rows]
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _write(self.path, json.dumps(self.setting | {"rows": self.rows}, indent=1) + "\n")
            _write(self.path.with_suffix(".md"), self.table() + "\n")

    def table(self) -> str:
        """Return all rows as a table in Markdown; a row ends with the command that repeats it."""
        header = ("what", "dtype", "pass", "competitor", "ms", "/ ours", "device ms", "host ms", "GB/s", "peak MB")
        lines = [
            (*(str(row[name]) for name in ("what", "dtype", "pass", "competitor")), *_cells(row), f"`{row['command']}`")
            for row in self.rows
        ]
        return table((*header, "error", "command"), lines)


def _cells(row: Row) -> list[str]:
    if "absent" in row:
        return [row["absent"].replace("|", "\\|"), *[""] * (len(_COLUMNS) - 1)]
    scales = {"bytes a second": 1e9, "peak bytes": 1e6}
    return [f"{row[name] / scales.get(name, 1):.4g}" if name in row else "" for name in _COLUMNS]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)
