"""Predictions: what a detector finds in picture files, as annotated pictures and as one COCO file."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from deform_attn.detr.config.detector import MAX_PIXELS
from deform_attn.detr.data.base import Category, coco_categories
from deform_attn.detr.data.batch import Batch, Sample, collate
from deform_attn.detr.data.brightness import warn_if_dark
from deform_attn.detr.data.picture_file import Picture, picture_tensor, read_picture_file
from deform_attn.detr.drawing.annotated import annotate
from deform_attn.detr.errors import DataError
from deform_attn.detr.files import atomic_path
from deform_attn.detr.model.detections import Detections

if TYPE_CHECKING:
    from PIL.Image import Image

PREDICTIONS = "predictions.json"
"""Of a prediction, in the directory that it writes to."""

SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of the files that are taken from a folder."""

_KEPT_SUFFIXES = (".jpeg", ".jpg", ".png")  # an annotated picture of another kind becomes a PNG
_MOST_PIXELS = 2**22  # of the pictures in one batch, unless there is only one

OnPicture = Callable[[int, int], None]


class Model(Protocol):
    """What detects: a `DeformableDetr`, or a file of ONNX."""

    def detect(self, batch: Batch, limit: int | None = None) -> list[Detections]:
        """Return the `limit` most certain detections of each picture, in pixels of its original size."""


class AnyDetector(Protocol):
    """What predicts: a `Detector`, or an `OnnxDetector` (onnx_file.py)."""

    @property
    def model(self) -> Model:
        """What detects."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes in order of their labels."""

    @property
    def max_size(self) -> int | None:
        """The longer side in pixels to which pictures are scaled, None to leave them."""


@dataclass(frozen=True)
class Predictions:
    """What `predict` wrote: its `files`, the content of the last one as `coco`, and one line per skipped image."""

    coco: dict[str, Any]
    files: tuple[Path, ...]
    skipped: tuple[str, ...]


def find_pictures(places: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the pictures that `places` name: each file itself, of a folder its pictures in order of their names.

    Raises:
        DataError: a folder holds no picture.
    """
    found: dict[Path, None] = {}  # each once, in order
    for place in map(Path, places):
        if not place.is_dir():
            found[place] = None
            continue
        inside = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not inside:
            raise DataError(
                f"{place}: no image in this folder; looked for {', '.join(SUFFIXES)}, not in folders inside it"
            )
        found |= dict.fromkeys(inside)
    return list(found)


def predict(
    detector: AnyDetector,
    pictures: Sequence[Path],
    out: str | os.PathLike[str],
    *,
    threshold: float = 0.3,
    max_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    skip_bad: bool = False,
    on_picture: OnPicture | None = None,
) -> Predictions:
    """Detect objects in images; write the images with their boxes, and `predictions.json`, to the directory `out`.

    The JSON is in COCO format, with a `score` per annotation. It loads as a dataset, and its `annotations` alone are
    COCO results. Boxes are in pixels of the upright image. A `file_name` is relative to the deepest folder that holds
    all images. Ids count from 1.

    Args:
        detector: the detector.
        pictures: image files that Pillow reads, at least one.
        out: the directory to write to, created if missing.
        threshold: detections with a smaller score are left out.
        max_size: scale larger images to this longer side, in pixels. Default: the detector's.
        max_pixels: an image of more pixels is an error. A decoded image takes 4 bytes per pixel.
        skip_bad: leave out images that cannot be read, instead of stopping.
        on_picture: called after each image with two numbers: images done, and all images.

    Raises:
        DataError: an image cannot be read (unless `skip_bad`), none can, or `out` is the folder of the images.
        OSError: `out` cannot be written to.

    Warns:
        DataWarning: images with 16 bits per channel seem to use only 14 or fewer.
    """
    if not pictures:
        raise DataError("pictures: expected at least one file, got none")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is not a folder; choose another to write to")
    # A link among them may lead into `out`, too.
    if out.resolve() in {folder for path in pictures for folder in (path.parent.resolve(), path.resolve().parent)}:
        raise DataError(f"{out}: holds the images themselves; choose another folder to write to")
    out.mkdir(parents=True, exist_ok=True)
    max_size = detector.max_size if max_size is None else max_size
    root = Path(os.path.commonpath([path.absolute().parent for path in pictures]))
    names = _output_names(pictures)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    skipped: list[str] = []
    files: list[Path] = []
    brightest: list[tuple[str, int]] = []
    readable = _readable(pictures, max_size, max_pixels, skipped if skip_bad else None)
    for group in _groups(readable):
        samples = [sample_of(picture) for _, picture in group]
        for (path, picture), found in zip(group, detector.model.detect(collate(samples)), strict=True):
            found = _with_area(found.above(threshold))
            image_id = len(images) + 1
            file_name = path.absolute().relative_to(root).as_posix()
            width, height = picture.size
            images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
            for record in found.to_coco(image_id, detector.categories):
                area = record["bbox"][2] * record["bbox"][3]
                annotations.append({"id": len(annotations) + 1, **record, "area": area, "iscrowd": 0})
            files.append(out / names[path])
            if picture.brightest is not None:
                brightest.append((str(path), picture.brightest))
            drawn = annotate(whole_image(path, picture, max_pixels), found, detector.categories)
            with atomic_path(files[-1]) as temporary:
                drawn.save(temporary, quality=90)  # of a JPEG
            if on_picture is not None:
                on_picture(len(images) + len(skipped), len(pictures))
    if not images:
        others = f", nor can the {len(skipped) - 1} others" if len(skipped) > 1 else ""
        raise DataError(f"{skipped[0]}{others}")
    warn_if_dark(brightest)
    coco = {"images": images, "annotations": annotations, "categories": coco_categories(detector.categories)}
    with atomic_path(out / PREDICTIONS) as temporary:
        temporary.write_text(json.dumps(coco, indent=1) + "\n", encoding="utf-8")
    return Predictions(coco, (*files, out / PREDICTIONS), tuple(skipped))


def _readable(
    pictures: Sequence[Path], max_size: int | None, max_pixels: int, skipped: list[str] | None
) -> Iterator[tuple[Path, Picture]]:
    """Yield each of `pictures` with its content; `skipped`, if given, is told which have none."""
    for path in pictures:
        try:
            picture = read_picture(path, max_size, max_pixels)
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
        else:
            yield path, picture


def read_picture(path: Path, max_size: int | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """Return the picture at `path`, upright, as RGB, and scaled down to `max_size`.

    Raises:
        DataError: there is none, it has more than `max_pixels`, or it cannot be read.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path")
    return read_picture_file(path, None, str(path), max_size=max_size, max_pixels=max_pixels)


def whole_image(path: Path, picture: Picture, max_pixels: int) -> "Image":
    """Return the image of the `picture` at `path` in the picture's own size; it is read again if it was scaled down."""
    if picture.image.size == picture.size:
        return picture.image
    return read_picture_file(path, picture.size, str(path), max_pixels=max_pixels).image


def _groups(pictures: Iterable[tuple[Path, Picture]]) -> Iterator[list[tuple[Path, Picture]]]:
    """Yield neighbours of one size together: without padding what is found in one does not depend on the others."""
    group: list[tuple[Path, Picture]] = []
    for path, picture in pictures:
        full = (len(group) + 1) * math.prod(picture.size) > _MOST_PIXELS
        if group and (full or picture.size != group[0][1].size):
            yield group
            group = []
        group.append((path, picture))
    if group:
        yield group


def sample_of(picture: Picture) -> Sample:
    """Return a picture as a sample in which nothing is to be found."""
    no_boxes, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    return Sample(picture_tensor(picture.image), no_boxes, no_labels, 0, picture.size[::-1])


def _with_area(found: Detections) -> Detections:
    """Return the detections that cover something; COCO knows no empty boxes."""
    keep = (found.boxes[:, 2:] > found.boxes[:, :2]).all(-1)
    return Detections(found.boxes[keep], found.scores[keep], found.labels[keep])


def _output_names(pictures: Sequence[Path]) -> dict[Path, str]:
    """Return a file name for each annotated picture, no two alike even where upper and lower case are the same."""
    names: dict[Path, str] = {}
    taken = set()
    for path in pictures:
        suffix = path.suffix if path.suffix.lower() in _KEPT_SUFFIXES else ".png"
        name, number = f"{path.stem}{suffix}", 1
        while name.casefold() in taken:
            number += 1
            name = f"{path.stem}-{number}{suffix}"
        taken.add(name.casefold())
        names[path] = name
    return names
