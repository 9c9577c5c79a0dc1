"""A COCO file: the tables of a json file in COCO's format, read and checked record by record."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from deform_attn.detr.errors import DataError

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


def checked_records(path: Path, table: str, records: list[Any]) -> dict[int, Record]:
    """Return the records of `table` by id, each with its fields and an id of its own."""
    by_id: dict[int, Record] = {}
    for position, record in enumerate(records):
        for field, kind in TABLES[table].items():
            value = record.get(field) if isinstance(record, Mapping) else None
            if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
                name = record.get("id", "without id") if isinstance(record, Mapping) else "without id"
                raise DataError(
                    f"{path}: {table}[{position}] (id {name}): expected {field!r} to be a {kind}, got {value!r:.60}; "
                    "correct the record"
                )
        if record["id"] in by_id:
            raise DataError(f"{path}: the id {record['id']} occurs twice in {table!r}; give each record its own id")
        by_id[record["id"]] = record
    return by_id


def checked_annotation(path: Path, record: Record, images: dict[int, Record], categories: dict[int, Record]) -> Record:
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


def one_line(error: BaseException) -> str:
    """Return what `error` says, or its name where it says nothing, as one line."""
    return " ".join(str(error).split()) or type(error).__name__
