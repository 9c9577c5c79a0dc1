"""A COCO folder: annotations in COCO's json format and a folder of pictures."""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

from deform_attn.detr.boxes import xyxy_to_cxcywh
from deform_attn.detr.data.base import Category, coco_categories
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.errors import DataError
from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    from PIL.Image import Image

_Record = dict[str, Any]

# What each kind of record must have, and the type of it.
_FIELDS: dict[str, dict[str, str]] = {
    "images": {"id": "whole number", "file_name": "text", "width": "whole number", "height": "whole number"},
    "categories": {"id": "whole number", "name": "text"},
    "annotations": {"id": "whole number", "image_id": "whole number", "category_id": "whole number", "bbox": "list"},
}
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error)  # Pillow's; RuntimeError: of AVIF
_TYPES: dict[str, type] = {"whole number": int, "text": str, "list": list}


class CocoFolder:
    """Pictures in a folder with boxes from a json file in COCO format.

    The annotations are checked when the object is made, each picture when it is read. Labels count the categories in
    order of their ids. A box that sticks out of its picture is clipped; crowd annotations are no training targets but
    stay in the ground truth, where evaluation ignores what they cover. Pictures of any mode become RGB (transparency
    is dropped) and are turned upright as their EXIF orientation says; `width` and `height` are of the upright picture.

    Args:
        annotations: the json file, with `images`, `annotations` and `categories`.
        images: the folder that `file_name` is relative to.
        max_size: pictures whose longer side is larger, in pixels, are scaled down to it. Default: native size.

    Raises:
        DataError: the annotations, or later a picture, cannot be used; the message says which record and what to do.

    Example:
        >>> data = CocoFolder("trees/train.json", "trees/train")  # doctest: +SKIP
        >>> data[0].boxes.shape  # doctest: +SKIP
        torch.Size([17, 4])
    """

    def __init__(
        self, annotations: str | os.PathLike[str], images: str | os.PathLike[str], *, max_size: int | None = None
    ) -> None:
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size: expected a number of pixels, at least 1, or None, got {max_size}")
        self.annotations = Path(annotations)
        self.images = Path(images)
        self.max_size = max_size
        if not self.images.is_dir():
            raise DataError(f"{self.images}: there is no such folder; pass the folder that holds the pictures")

        tables = _read_json(self.annotations)
        records = {table: _checked_records(self.annotations, table, tables[table]) for table in _FIELDS}
        self._images = list(records["images"].values())
        for image in self._images:
            if min(image["width"], image["height"]) < 1:
                raise DataError(
                    f"{self.annotations}: image {image['id']} is {image['width']} x {image['height']} pixels large; "
                    "write the picture's own width and height"
                )
        category_ids = sorted(records["categories"])
        self.categories = tuple(Category(i, records["categories"][i]["name"]) for i in category_ids)
        self._annotations = [
            _checked_annotation(self.annotations, record, records["images"], records["categories"])
            for record in records["annotations"].values()
        ]

        self._label_of = {category_id: label for label, category_id in enumerate(category_ids)}
        self._targets: dict[int, list[_Record]] = {image["id"]: [] for image in self._images}
        for annotation in self._annotations:
            if not annotation["iscrowd"]:
                self._targets[annotation["image_id"]].append(annotation)

    def __len__(self) -> int:
        return len(self._images)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the pictures are the same in every epoch."""

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        record = self._images[index]
        width, height = record["width"], record["height"]
        targets = self._targets[record["id"]]
        corners = torch.tensor([_corners(target["bbox"]) for target in targets], dtype=torch.float64).view(-1, 4)
        scale = torch.tensor([width, height, width, height], dtype=torch.float64)
        labels = [self._label_of[target["category_id"]] for target in targets]
        return Sample(
            image=self._read_picture(record),
            boxes=xyxy_to_cxcywh(corners / scale).float(),
            labels=torch.tensor(labels, dtype=torch.int64),
            image_id=record["id"],
            original_size=(height, width),
        )

    def ground_truth(self) -> dict[str, Any]:
        """Return the checked annotations as a COCO dict, with clipped boxes and with crowds."""
        images = [{key: record[key] for key in ("id", "width", "height", "file_name")} for record in self._images]
        annotations = [dict(annotation) for annotation in self._annotations]
        return {"images": images, "annotations": annotations, "categories": coco_categories(self.categories)}

    def _read_picture(self, record: _Record) -> Tensor:
        """Return the picture of an image record as `[3, H, W]` in [0, 1]."""
        with detr_extra():
            import numpy as np
            from PIL import Image, ImageOps

        path = self.images / record["file_name"]
        where = f"{path} (image {record['id']} of {self.annotations})"
        try:
            with Image.open(path) as file:
                picture = _as_rgb(ImageOps.exif_transpose(file))
        except FileNotFoundError as error:
            raise DataError(f"{where}: there is no such file; add it or take its record out") from error
        except (*_DAMAGED, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: this is no readable picture ({_one_line(error)}); replace the file") from error

        expected = (record["width"], record["height"])
        if picture.size != expected:
            raise DataError(
                f"{where}: the picture is {picture.width} x {picture.height} pixels large, the annotations say "
                f"{expected[0]} x {expected[1]}; annotate the upright picture, and do not resize it afterwards"
            )
        if self.max_size is not None and max(picture.size) > self.max_size:
            scale = self.max_size / max(picture.size)
            smaller = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            picture = picture.resize(smaller, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def _read_json(path: Path) -> dict[str, list[Any]]:
    """Return the three tables of a COCO file, none of them empty."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); pass the path of a COCO json file") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is no JSON ({_one_line(error)}); export the annotations as COCO json") from error

    if isinstance(content, list):
        raise DataError(f"{path}: a list is no COCO data set, rather COCO results; pass the file with the annotations")
    tables: dict[str, list[Any]] = {}
    for table in _FIELDS:
        records = content.get(table) if isinstance(content, dict) else None
        if not isinstance(records, list):
            raise DataError(f"{path}: not in COCO format, {table!r} is no list; export the annotations as COCO json")
        if not records:
            raise DataError(f"{path}: there are no {table}; export a data set in which something is annotated")
        tables[table] = records
    return tables


def _checked_records(path: Path, table: str, records: list[Any]) -> dict[int, _Record]:
    """Return the records of `table` by id, each with its fields and an id of its own."""
    by_id: dict[int, _Record] = {}
    for position, record in enumerate(records):
        for field, kind in _FIELDS[table].items():
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


def _checked_annotation(
    path: Path, record: _Record, images: dict[int, _Record], categories: dict[int, _Record]
) -> _Record:
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
    left, top, right, bottom = _corners(box)
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


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    """Return the corners of a box (x, y, width, height)."""
    left, top, width, height = box
    return left, top, left + width, top + height


def _is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number of a sensible size, which excludes NaN and infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _as_rgb(picture: "Image") -> "Image":
    """Return `picture` as RGB with 8 bits a channel."""
    with detr_extra():
        import numpy as np
        from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 rather than scale
        picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).round().astype(np.uint8))
    if picture.mode == "P":  # its palette may hold transparency, which only RGBA can take over
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
