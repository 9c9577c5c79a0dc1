"""A COCO file: the tables of a json file in COCO's format, read and checked record by record."""

import json
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, TypeGuard

from deform_attn.detr.data.problems import Problems
from deform_attn.detr.errors import DataError, one_line

Record = dict[str, Any]

# What each kind of record must have, and the type of it.
TABLES: dict[str, dict[str, str]] = {
    "images": {"id": "whole number", "file_name": "text", "width": "whole number", "height": "whole number"},
    "categories": {"id": "whole number", "name": "text"},
    "annotations": {"id": "whole number", "image_id": "whole number", "category_id": "whole number", "bbox": "list"},
}
_TYPES: dict[str, type] = {"whole number": int, "text": str, "list": list}


def read_json(path: Path) -> dict[str, list[Any]]:
    """Return the three tables of a COCO file, none of them empty."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); pass the path of a COCO json file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is no JSON ({one_line(error)}); export the annotations as COCO json") from error

    if isinstance(content, list):
        raise DataError(f"{path}: a list is no COCO data set, rather COCO results; pass the file with the annotations")
    tables: dict[str, list[Any]] = {}
    for table in TABLES:
        records = content.get(table) if isinstance(content, dict) else None
        if not isinstance(records, list):
            raise DataError(f"{path}: not in COCO format, {table!r} is no list; export the annotations as COCO json")
        if not records:
            raise DataError(f"{path}: there are no {table}; export a data set in which something is annotated")
        tables[table] = records
    return tables


def checked_records(path: Path, table: str, records: list[Any], problems: Problems) -> dict[int, Record]:
    """Return the good records of `table` by id; of two with one id the first."""
    by_id: dict[int, Record] = {}
    for position, record in enumerate(records):
        record_id = record.get("id") if isinstance(record, Mapping) else None
        is_image = table == "images" and type(record_id) is int and record_id not in by_id
        with problems.noted(record_id if is_image else None):
            _check_record(path, table, position, record)
            if record["id"] in by_id:
                raise DataError(f"{path}: the id {record['id']} occurs twice in {table!r}; give each record its own id")
            by_id[record["id"]] = record
    require_some(path, table, by_id, problems)
    return by_id


def checked_annotations(
    path: Path, records: list[Any], images: dict[int, Record], categories: dict[int, Record], problems: Problems
) -> list[Record]:
    """Return what we keep of the good annotations of `images`."""
    annotations: list[Record] = []
    for record in checked_records(path, "annotations", records, problems).values():
        if record["image_id"] in images or not problems.lost_with(record["image_id"]):
            with problems.noted():
                annotations.append(_checked_annotation(path, record, images, categories))
    require_some(path, "annotations", annotations, problems)
    return annotations


def require_some(path: Path, table: str, left: Sized, problems: Problems) -> None:
    """Check that something is `left` of `table`.

    Raises:
        DataError: everything was skipped.
    """
    if not left:
        lines = problems.messages
        raise DataError(f"{path}: none of the {table} can be used; the first of {len(lines)} problems: {lines[0]}")


def _check_record(path: Path, table: str, position: int, record: Any) -> None:
    """Check that `record` has the fields of its `table`, and an image some extent."""
    for field, kind in TABLES[table].items():
        value = record.get(field) if isinstance(record, Mapping) else None
        if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
            name = record.get("id", "without id") if isinstance(record, Mapping) else "without id"
            raise DataError(
                f"{path}: {table}[{position}] (id {name}): expected {field!r} to be a {kind}, got {value!r:.60}; "
                "correct the record"
            )
    if table == "images" and min(record["width"], record["height"]) < 1:
        raise DataError(
            f"{path}: image {record['id']} is {record['width']} x {record['height']} pixels large; "
            "write the picture's own width and height"
        )


def _checked_annotation(path: Path, record: Record, images: dict[int, Record], categories: dict[int, Record]) -> Record:
    """Return what we keep of an annotation: its box clipped to the picture, its area, whether it is a crowd."""
    where = f"{path}: annotation {record['id']}"
    for field, known in (("image_id", images), ("category_id", categories)):
        if record[field] not in known:
            table = "images" if known is images else "categories"
            raise DataError(f"{where}: {field} {record[field]} is not among the {table}; add it or drop the annotation")

    box = record["bbox"]
    if len(box) != 4 or not all(_is_number(value) for value in box):
        raise DataError(
            f"{where}: expected bbox to be 4 finite numbers x, y, width, height, got {box!r:.80}; correct it"
        )
    if min(box[2:]) <= 0:
        raise DataError(f"{where}: bbox {box} has no area; bbox is x, y, width, height: correct or drop it")
    image = images[record["image_id"]]
    left, top, right, bottom = corners_of(box)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, image["width"]), min(bottom, image["height"])
    if left >= right or top >= bottom:
        raise DataError(
            f"{where}: bbox {box} lies outside image {image['id']} ({image['width']} x {image['height']} pixels); "
            "bbox is x, y, width, height in pixels: correct or drop it"
        )
    area = record.get("area")
    return {
        "id": record["id"],
        "image_id": record["image_id"],
        "category_id": record["category_id"],
        "bbox": [left, top, right - left, bottom - top],
        # COCO's own area is that of the mask; a data set of boxes may come without.
        "area": area if _is_number(area) and area > 0 else (right - left) * (bottom - top),
        "iscrowd": int(bool(record.get("iscrowd", 0))),
    }


def corners_of(box: list[float]) -> tuple[float, float, float, float]:
    """Return the corners of a box (x, y, width, height)."""
    left, top, width, height = box
    return left, top, left + width, top + height


def _is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number of a sensible size, which excludes NaN and infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9
