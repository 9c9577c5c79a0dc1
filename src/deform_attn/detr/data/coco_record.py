"""A COCO record: the fields that each kind of record must have, in the types that we use."""

import re
from pathlib import Path
from typing import Any, TypeGuard

from deform_attn.detr.errors import DataError, quoted

Record = dict[str, Any]

TABLES: dict[str, dict[str, str]] = {
    "images": {"id": "id", "file_name": "text", "width": "size", "height": "size"},
    "categories": {"id": "id", "name": "text"},
    "annotations": {"id": "id", "image_id": "id", "category_id": "id", "bbox": "list"},
}
"""What each kind of record must have, and the kind of it; an annotation may do without its `id`."""

_TYPES: dict[str, type] = {"id": int, "size": int, "text": str, "list": list}
_NUMERAL = re.compile(r"0|-?[1-9][0-9]{0,17}")  # without leading zeros, so that no two texts are one number


def check_record(path: Path, table: str, position: int, record: Any) -> None:
    """Check that `record` has the fields of its `table`, and an image some extent.

    Numbers become ints in place where an export writes them as 96.0 or, of ids, as "96". The `id` of an annotation
    that has none becomes None.

    Raises:
        DataError: a field is missing or of another type; the message names record and field.
    """
    if not isinstance(record, dict):
        fields = ", ".join(map(repr, TABLES[table]))
        raise DataError(f"{path}: {table}[{position}]: expected a record with {fields}, got {record!r:.60}; drop it")
    for field, kind in TABLES[table].items():
        value = record.get(field)
        if type(value) is not _TYPES[kind]:
            record[field] = _converted(path, table, position, record, field)
    if table == "images" and min(record["width"], record["height"]) < 1:
        raise DataError(
            f"{path}: image {record['id']} is {record['width']} x {record['height']} pixels large; "
            "write the image's own width and height"
        )


def place_of(path: Path, table: str, position: int, record: Record) -> str:
    """Return how messages call a record that may have no id."""
    name = record.get("id")
    return f"{path}: {table}[{position}] ({'no id' if name is None else f'id {quoted(name)}'})"


def number_of(value: object) -> int | None:
    """Return the whole number that an id such as 7, 7.0 or "7" is, None if it is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _NUMERAL.fullmatch(value):
        return int(value)
    return value if type(value) is int else None


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number of a sensible size, which excludes NaN and infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _converted(path: Path, table: str, position: int, record: Record, field: str) -> int | None:
    """Return what is meant by a value of another type than that of its `field`."""
    value, kind = record.get(field), TABLES[table][field]
    if value is None and (table, field) == ("annotations", "id"):
        return None
    if kind == "id" or (kind == "size" and isinstance(value, float)):
        number = number_of(value)
        if number is not None:
            return number
    wanted = "whole number" if _TYPES[kind] is int else kind
    quoted = wanted == "whole number" and isinstance(value, str) and _NUMERAL.fullmatch(value)
    advice = "write numbers without quotation marks" if quoted else "correct the record"
    raise DataError(
        f"{place_of(path, table, position, record)}: expected {field!r} to be a {wanted}, got {value!r:.60}; {advice}"
    )
