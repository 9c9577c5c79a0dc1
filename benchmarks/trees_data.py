"""Trees: a small data set of tree crowns on aerial photographs, cut from the two that the package deepforest ships.

After `pip download --no-deps deepforest==2.1.0` the command
`python -m benchmarks.trees_data deepforest-2.1.0-py3-none-any.whl trees` makes the folder `trees` (COCO format). The
photographs (NEON, site YELL) and their boxes are under deepforest's licence, MIT, which is copied beside them.
"""

import argparse
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

TILE, STEP = 320, 256  # pixels
KEPT = 0.4  # of a box's area that must lie in a tile
JPEG_QUALITY = 92

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


class Strip(NamedTuple):
    """The columns of a photograph, as shares of its width, that belong to a split."""

    split: str
    photograph: str
    first: float
    last: float


STRIPS = (
    Strip("train", "2019_YELL_2_528000_4978000_image_crop2", 0.0, 1.0),
    Strip("train", "2019_YELL_2_541000_4977000_image_crop", 0.0, 0.6),
    Strip("val", "2019_YELL_2_541000_4977000_image_crop", 0.6, 1.0),
)


def starts(first: int, last: int) -> list[int]:
    """Return where tiles begin between two pixels: every `STEP`, and one flush with the end.

    Example:
        >>> starts(0, 749)
        [0, 256, 429]
    """
    return [*range(first, last - TILE, STEP), last - TILE]


def boxes_in(boxes: list[Box], left: int, top: int) -> list[Box]:
    """Return the boxes of which enough lies in the tile at `left`, `top`, clipped to it and counted from its corner.

    Example:
        >>> boxes_in([(300, 10, 350, 20), (310, 10, 350, 20)], 0, 0)
        [(300, 10, 320, 20)]
    """
    found = []
    for x0, y0, x1, y1 in boxes:
        inside = max(x0 - left, 0), max(y0 - top, 0), min(x1 - left, TILE), min(y1 - top, TILE)
        width, height = inside[2] - inside[0], inside[3] - inside[1]
        if width > 0 and height > 0 and width * height >= KEPT * (x1 - x0) * (y1 - y0):
            found.append(inside)
    return found


def tiles(strip: Strip, size: tuple[int, int], boxes: list[Box]) -> Iterator[tuple[int, int, list[Box]]]:
    """Yield left, top and boxes of each tile of a strip that shows a tree; `size` is the photograph's (W, H)."""
    first, last = int(strip.first * size[0]), int(strip.last * size[0])
    for top in starts(0, size[1]):
        for left in starts(first, last):
            inside = boxes_in(boxes, left, top)
            if inside:
                yield left, top, inside


def annotated(xml: bytes) -> list[Box]:
    """Return the boxes of a Pascal VOC file."""
    fields = ("xmin", "ymin", "xmax", "ymax")
    found = []
    for box in ElementTree.fromstring(xml).iter("bndbox"):
        x0, y0, x1, y1 = (float(box.findtext(field, "")) for field in fields)
        found.append((x0, y0, x1, y1))
    return found


def make(wheel: Path, out: Path) -> None:
    """Write the data set to the folder `out`, which must not exist."""
    from PIL import Image

    out.mkdir(parents=True)
    truth = {split: {"images": [], "annotations": []} for split in ("train", "val")}
    with zipfile.ZipFile(wheel) as package:
        for strip in STRIPS:
            source = f"deepforest/data/{strip.photograph}"
            picture = Image.open(io.BytesIO(package.read(f"{source}.png"))).convert("RGB")
            folder, table = out / strip.split, truth[strip.split]
            folder.mkdir(exist_ok=True)
            for left, top, boxes in tiles(strip, picture.size, annotated(package.read(f"{source}.xml"))):
                image = {"id": len(table["images"]) + 1, "file_name": f"{strip.photograph}_{left}_{top}.jpg"}
                table["images"].append({**image, "width": TILE, "height": TILE})
                tile = picture.crop((left, top, left + TILE, top + TILE))
                tile.save(folder / image["file_name"], quality=JPEG_QUALITY)
                table["annotations"] += [
                    {
                        "id": len(table["annotations"]) + number,
                        "image_id": image["id"],
                        "category_id": 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                    }
                    for number, (x0, y0, x1, y1) in enumerate(boxes, 1)
                ]
        (licence,) = (name for name in package.namelist() if name.endswith("/LICENSE"))
        (out / "LICENSE").write_bytes(package.read(licence))
    for split, table in truth.items():
        table["categories"] = [{"id": 1, "name": "tree"}]
        (out / f"{split}.json").write_text(json.dumps(table))


def main() -> None:
    """Make the data set that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="deepforest-2.1.0-py3-none-any.whl")
    parser.add_argument("out", type=Path, help="folder to make")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists; name a folder that does not")
    make(options.wheel, options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
