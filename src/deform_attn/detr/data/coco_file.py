"""A COCO file: the tables of a json file in COCO's format, read and checked record by record."""

import itertools
import json
from collections.abc import Sized
from pathlib import Path
from typing import Any

from deform_attn.detr.data.coco_record import TABLES, Record, check_record, is_number, number_of, place_of
from deform_attn.detr.data.problems import Problems
from deform_attn.detr.errors import DataError, one_line


def read_json(path: Path) -> dict[str, list[Any]]:
    """Return the three tables of a COCO file, none of them empty."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); pass the path of a COCO JSON") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({one_line(error)}); export the annotations as COCO JSON") from error

    if isinstance(content, list):
        raise DataError(f"{path}: a list is not a COCO dataset, but COCO results; pass the file with the annotations")
    tables: dict[str, list[Any]] = {}
    for table in TABLES:
        records = content.get(table) if isinstance(content, dict) else None
        if not isinstance(records, list):
            raise DataError(f"{path}: not in COCO format, {table!r} is not a list; export the annotations as COCO JSON")
        if not records:
            raise DataError(f"{path}: no {table}; label some images and export again")
        tables[table] = records
    return tables


def checked_records(path: Path, table: str, records: list[Any], problems: Problems) -> dict[int, Record]:
    """Return the good records of `table`, images or categories, by id; of two with one id the first."""
    by_id: dict[int, Record] = {}
    for position, record in enumerate(records):
        image_id = number_of(record.get("id")) if table == "images" and isinstance(record, dict) else None
        with problems.noted(None if image_id in by_id else image_id):
            check_record(path, table, position, record)
            if record["id"] in by_id:
                raise _twice(path, table, record)
            by_id[record["id"]] = record
    require_some(path, table, by_id, problems)
    return by_id


def checked_annotations(
    path: Path, records: list[Any], images: dict[int, Record], categories: dict[int, Record], problems: Problems
) -> tuple[list[Record], list[Record]]:
    """Return what we keep of the good annotations of `images`, and those of them whose box was clipped by over a pixel.

    Of two annotations with one id the first is kept.

    Nothing refers to the id of an annotation: one without gets the next number that is free.

    Raises:
        DataError: an annotation cannot be used; or all are crowds, so that nothing is to be found.
    """
    annotations: list[Record] = []
    clipped: list[Record] = []
    seen: set[int] = set()
    for position, record in enumerate(records):
        with problems.noted():
            check_record(path, "annotations", position, record)
            if record["id"] in seen:
                raise _twice(path, "annotations", record)
            if record["id"] is not None:
                seen.add(record["id"])
            if record["image_id"] in images or not problems.lost_with(record["image_id"]):
                kept = _checked_annotation(path, position, record, images, categories)
                annotations.append(kept)
                if any(abs(given - used) > 1 for given, used in zip(record["bbox"], kept["bbox"], strict=True)):
                    clipped.append(kept)
    require_some(path, "annotations", annotations, problems)
    free = itertools.count(max(seen, default=0) + 1)
    for annotation in annotations:
        if annotation["id"] is None:
            annotation["id"] = next(free)
    if all(annotation["iscrowd"] for annotation in annotations):
        left = " left" if problems.messages else ""
        raise DataError(
            f"{path}: there is no object to find, all {len(annotations)} annotations{left} have iscrowd = 1, as some "
            "tools write by default; write iscrowd = 0 where a box holds a single object"
        )
    return annotations, clipped


def require_some(path: Path, table: str, left: Sized, problems: Problems) -> None:
    """Check that something is `left` of `table`.

    Raises:
        DataError: everything was skipped.
    """
    if not left:
        lines = problems.messages
        raise DataError(f"{path}: none of the {table} can be used; the first of {len(lines)} problems: {lines[0]}")


def _twice(path: Path, table: str, record: Record) -> DataError:
    return DataError(f"{path}: the id {record['id']} occurs twice in {table!r}; give each record its own id")


def _checked_annotation(
    path: Path, position: int, record: Record, images: dict[int, Record], categories: dict[int, Record]
) -> Record:
    """Return what we keep of an annotation: its box clipped to the picture, its area, whether it is a crowd."""

    def error(what: str) -> DataError:
        own = f"{path}: annotation {record['id']}"
        return DataError(f"{place_of(path, 'annotations', position, record) if record['id'] is None else own}: {what}")

    for field, known in (("image_id", images), ("category_id", categories)):
        if record[field] not in known:
            table = "images" if known is images else "categories"
            raise error(f"{field} {record[field]} is not among the {table}; add it or drop the annotation")

    box, crowd = record["bbox"], record.get("iscrowd")
    if len(box) != 4 or not all(map(is_number, box)):
        advice = "; write numbers without quotation marks" if any(isinstance(n, str) for n in box) else "; correct it"
        raise error(f"expected bbox to be 4 finite numbers x, y, width, height, got {box!r:.80}{advice}")
    if min(box[2:]) <= 0:
        raise error(f"bbox {box} has no area; bbox is x, y, width, height: correct or drop it")
    image = images[record["image_id"]]
    left, top, right, bottom = corners_of(box)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, image["width"]), min(bottom, image["height"])
    if left >= right or top >= bottom:
        raise error(
            f"bbox {box} is outside image {image['id']} ({image['width']} x {image['height']} pixels); "
            "bbox is x, y, width, height in pixels: correct or drop it"
        )
    if crowd not in (0, 1, None):
        raise error(f"expected iscrowd to be 0 or 1, got {crowd!r:.60}; correct it")
    area = record.get("area")
    return {
        "id": record["id"],
        "image_id": record["image_id"],
        "category_id": record["category_id"],
        "bbox": [left, top, right - left, bottom - top],
        # COCO's own area is that of the mask; a data set of boxes may come without.
        "area": area if is_number(area) and area > 0 else (right - left) * (bottom - top),
        "iscrowd": int(crowd or 0),
    }


def corners_of(box: list[float]) -> tuple[float, float, float, float]:
    """Return the corners of a box (x, y, width, height)."""
    left, top, width, height = box
    return left, top, left + width, top + height
