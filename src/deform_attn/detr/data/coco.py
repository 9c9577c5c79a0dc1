"""A COCO folder: annotations in COCO's json format and a folder of pictures."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from deform_attn.detr.boxes import xyxy_to_cxcywh
from deform_attn.detr.config.detector import MAX_PIXELS
from deform_attn.detr.data.base import Category, coco_categories
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.data.brightness import dark_remark, is_dark
from deform_attn.detr.data.coco_file import checked_annotations, checked_records, corners_of, read_json, require_some
from deform_attn.detr.data.coco_record import Record
from deform_attn.detr.data.picture_file import Picture, check_header, picture_tensor, read_picture_file
from deform_attn.detr.data.picture_names import advice_on, find_files
from deform_attn.detr.data.problems import Problems
from deform_attn.detr.errors import DataError, printable, quoted

_LOOKED_AT = 8  # pictures with more than 8 bits a channel, to see whether they are dark


class CocoFolder:
    """A dataset: images in a folder, with boxes from a JSON file in COCO format.

    Labels count the categories in the order of their ids. A box that extends beyond its image is clipped. Crowd
    annotations are not training targets. They stay in the ground truth, and evaluation ignores what they cover. Images
    of any mode become RGB without transparency, turned upright by their EXIF orientation. `width` and `height` are
    those of the upright image. Pixels of uncertain meaning, such as floating-point numbers, are refused.

    Annotations and image headers are checked at once. A file that is truncated after its header is found when it is
    read. `skip_bad` decodes each image at once to find these, too. An image that fails later has changed since, and
    raises. `skipped` has one line per record that was left out; the annotations of an image are left out with it.
    `remarks` has one line per probable mistake. These are file names of another system, images that occur twice, and
    images of 16 bits that seem to use 14 or fewer.

    Args:
        annotations: the JSON file, with `images`, `annotations` and `categories`.
        images: the folder that `file_name` is relative to.
        max_size: images whose longer side is larger, in pixels, are scaled down to it. Default: native size.
        max_pixels: an image of more pixels is an error. A decoded image takes 4 bytes per pixel.
        skip_bad: leave out records that cannot be used; of two with the same id the first stays.

    Raises:
        DataError: the annotations, or later an image, cannot be used, or no image or only crowds are left. The message
            names the record and says what to do.

    Example:
        >>> data = CocoFolder("trees/train.json", "trees/train")  # doctest: +SKIP
        >>> data[0].boxes.shape  # doctest: +SKIP
        torch.Size([17, 4])
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str],
        *,
        max_size: int | None = None,
        max_pixels: int = MAX_PIXELS,
        skip_bad: bool = False,
    ) -> None:
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size: expected a number of pixels, at least 1, or None, got {max_size}")
        if max_pixels < 1:
            raise ValueError(f"max_pixels: expected a number of pixels, at least 1, got {max_pixels}")
        self.annotations = Path(annotations)
        self.images = Path(images)
        self.max_size = max_size
        self.max_pixels = max_pixels
        if not self.images.is_dir():
            raise DataError(f"{self.images}: no such folder; pass the folder that holds the images")

        problems = Problems(skip_bad)
        tables = read_json(self.annotations)
        pictures, categories = (
            checked_records(self.annotations, table, tables[table], problems) for table in ("images", "categories")
        )
        pictures = self._checked_pictures(pictures, problems)
        self._images = list(pictures.values())
        category_ids = sorted(categories)
        self.categories = tuple(Category(i, categories[i]["name"]) for i in category_ids)
        self._annotations, clipped = checked_annotations(
            self.annotations, tables["annotations"], pictures, categories, problems
        )
        self.skipped = problems.messages
        self.remarks = tuple(self._remarks(clipped))

        self._label_of = {category_id: label for label, category_id in enumerate(category_ids)}
        self._targets: dict[int, list[Record]] = {image["id"]: [] for image in self._images}
        for annotation in self._annotations:
            if not annotation["iscrowd"]:
                self._targets[annotation["image_id"]].append(annotation)

    def __len__(self) -> int:
        return len(self._images)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the pictures are the same in every epoch."""

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        record = self._images[index]
        width, height = record["width"], record["height"]
        targets = self._targets[record["id"]]
        corners = torch.tensor([corners_of(target["bbox"]) for target in targets], dtype=torch.float64).view(-1, 4)
        scale = torch.tensor([width, height, width, height], dtype=torch.float64)
        labels = [self._label_of[target["category_id"]] for target in targets]
        return Sample(
            image=picture_tensor(self._read_picture(record).image),
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

    def _place(self, record: Record) -> str:
        """Return how messages call the picture of an image record."""
        file = self._files.get(record["id"], self.images / record["file_name"])
        return f"{printable(file)} (image {record['id']} of {self.annotations})"

    def _checked_pictures(self, images: dict[int, Record], problems: Problems) -> dict[int, Record]:
        """Return those of `images` whose picture is there, readable and of the size that the annotations say."""
        found = find_files(self.images, {image_id: record["file_name"] for image_id, record in images.items()})
        self._files, self._moved = found.files, set(found.moved)
        missing = [record for image_id, record in images.items() if image_id not in found.files]
        rest = 0 if problems.skip else len(missing) - 1
        others = f" (and {rest} more {'image is' if rest == 1 else 'images are'} missing)" if rest > 0 else ""
        for record in missing:
            advice = advice_on(self.images, record["file_name"], found.rivals.get(record["id"]))
            with problems.noted(record["id"]):
                raise DataError(f"{self._place(record)}: no such file{others}; {advice}")

        good: dict[int, Record] = {}
        brightest: list[tuple[str, int]] = []  # of pictures with more than 8 bits a channel
        for image_id in found.files:
            record = images[image_id]
            with problems.noted(image_id):
                value = self._checked_picture(record, decode=problems.skip, look=_is_open(brightest))
                if value is not None:
                    brightest.append((printable(found.files[image_id]), value))
                good[image_id] = record
        require_some(self.annotations, "images", good, problems)
        self._dark = dark_remark(brightest)
        return {image_id: record for image_id, record in images.items() if image_id in good}

    def _checked_picture(self, record: Record, *, decode: bool, look: bool) -> int | None:
        """Check the picture of an image record, and decode it if `decode`.

        Returns:
            With `decode`, or with `look` where it has more than 8 bits a channel, its `Picture.brightest`.
        """
        if decode:
            return self._read_picture(record).brightest
        size = record["width"], record["height"]
        deep = check_header(self._files[record["id"]], size, self._place(record), self.max_pixels)
        return self._read_picture(record).brightest if deep and look else None

    def _remarks(self, clipped: list[Record]) -> Iterator[str]:
        """Yield a line for each thing about pictures and boxes that can be used but may not be meant."""
        if clipped:
            yield (
                f"{self.annotations}: {len(clipped)} of {len(self._annotations)} boxes extend beyond their image and "
                f"are clipped, the first is that of annotation {clipped[0]['id']}; bbox is x, y, width, height, not "
                "two corners"
            )
        moved = [record for record in self._images if record["id"] in self._moved]
        if moved:
            name, file = moved[0]["file_name"], self._files[moved[0]["id"]]
            yield (
                f"{self.annotations}: {len(moved)} of {len(self._images)} images were found by the ends of their "
                f"file names, the first, {quoted(name)}, as {printable(file)}"
            )
        first: dict[Path, int] = {}
        pairs = [(first.setdefault(self._files[record["id"]], record["id"]), record["id"]) for record in self._images]
        again = [pair for pair in pairs if pair[0] != pair[1]]
        if again:
            more = f" (pairs of this kind: {len(again)})" if len(again) > 1 else ""
            yield (
                f"{self.annotations}: images {again[0][0]} and {again[0][1]} are the same file{more}; merge their "
                "records, since what one of them marks is background in the other"
            )
        if self._dark is not None:
            yield self._dark

    def _read_picture(self, record: Record) -> Picture:
        """Return the picture of an image record."""
        size = record["width"], record["height"]
        return read_picture_file(
            self._files[record["id"]], size, self._place(record), max_size=self.max_size, max_pixels=self.max_pixels
        )


def _is_open(brightest: list[tuple[str, int]]) -> bool:
    """Return whether it takes another picture to see whether those with more than 8 bits a channel are dark."""
    return len(brightest) < _LOOKED_AT and all(is_dark(value) for _, value in brightest)
