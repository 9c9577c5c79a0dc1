"""The splits of a data set: where its annotations and pictures lie, in the folder layouts that people have."""

import json
import os
from pathlib import Path
from typing import Literal, NamedTuple

from deform_attn.detr.data.picture_names import find_end
from deform_attn.detr.errors import DataError

SplitName = Literal["train", "val"]

_NAMES = {"train": ("train",), "val": ("val", "valid")}


class Split(NamedTuple):
    """The json file of one split and the folder that its `file_name`s are relative to."""

    annotations: Path
    images: Path


def find_split(folder: str | os.PathLike[str], name: SplitName) -> Split | None:
    """Return where the split called `name` lies in `folder`, None if it is not there.

    Three layouts are known, here for `train`; a validation split may be called `valid`, too:

    - `train.json` and `train/`,
    - COCO's own: `annotations/instances_train2017.json` (any year, or none) and `train2017/` or `images/train2017/`,
    - Roboflow's: `train/_annotations.coco.json`, with the pictures beside it.

    Where there is no training split, a single json file is one, as labelling tools export it: in the folder or in
    `annotations/`, the pictures relative to the folder, to `images/`, to `images/default/` or to the only other
    folder in it that holds the first of them.

    Raises:
        DataError: there is no such folder, or more than one such split.
    """
    folder = Path(folder)
    if folder.is_file():
        raise DataError(f"{folder}: this is a file; pass the folder that holds it and the images")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; pass the one that holds the annotations and the images")
    candidates = (split for one in _NAMES[name] for split in _candidates(folder, one))
    found = [split for split in candidates if split.annotations.is_file()]
    if len(found) > 1:
        files = " and ".join(str(split.annotations.relative_to(folder)) for split in found[:2])
        raise DataError(f"{folder}: {files} are both a {name} split; move all but one elsewhere")
    if not found and name == "train":
        return _only_json(folder)
    return found[0] if found else None


def required_split(folder: str | os.PathLike[str], name: SplitName) -> Split:
    """Return what `find_split` returns.

    Raises:
        DataError: as there, or there is no such split; the message says what was looked for.
    """
    split = find_split(folder, name)
    if split is None:
        raise DataError(
            f"{folder}: there is no {name} split; looked for {looked_for(name)}; {_cure(Path(folder), name)}"
        )
    return split


def _cure(folder: Path, name: SplitName) -> str:
    """Return what to do where `folder` has no split called `name`."""
    several = [str(file.relative_to(folder)) for file in _unnamed(folder)]
    if name == "train" and len(several) > 1:
        files = ", ".join(several[:5])
        return f"there are several json files ({files}): call one train.json, and the folder of its images train"
    inside = sorted(one for one in folder.iterdir() if one.is_dir() and _has_split(one, name))
    if inside:
        return f"pass {inside[0]}, which has one"
    if name == "val":
        return "use --hold-out 0.1 to evaluate on a tenth of the train split"
    return "put the annotations there, exported as COCO JSON, and pass the folder that holds them and the images"


def _has_split(folder: Path, name: SplitName) -> bool:
    """Return whether `folder` has a split called `name`, without a look into files."""
    there = any(split.annotations.is_file() for one in _NAMES[name] for split in _candidates(folder, one))
    return there or (name == "train" and len(_unnamed(folder)) == 1)


def looked_for(name: SplitName) -> str:
    """Return which files may hold the annotations of the split called `name`, in words."""
    patterns = ("{0}.json", "annotations/instances_{0}*.json", "{0}/_annotations.coco.json")
    found = [pattern.format(one) for one in _NAMES[name] for pattern in patterns]
    return ", ".join(found if name == "val" else [*found, "a single json file"])


def _candidates(folder: Path, name: str) -> list[Split]:
    """Return where the split could lie; only COCO's file, whose name is not known in full, is known to be there."""
    found = [Split(folder / f"{name}.json", folder / name)]
    for file in sorted((folder / "annotations").glob(f"instances_{name}*.json")):
        pictures = file.stem.removeprefix("instances_")
        if pictures.removeprefix(name).isdigit() or pictures == name:  # not "train" in "trainval2014"
            nested = folder / "images" / pictures
            found.append(Split(file, nested if nested.is_dir() else folder / pictures))
    return [*found, Split(folder / name / "_annotations.coco.json", folder / name)]


def _unnamed(folder: Path) -> list[Path]:
    """Return the json files that may be a data set in one piece: those that are no split by their name."""
    named = {split.annotations for names in _NAMES.values() for one in names for split in _candidates(folder, one)}
    return sorted({*folder.glob("*.json"), *(folder / "annotations").glob("*.json")} - named)


def _only_json(folder: Path) -> Split | None:
    """Return the data set in one piece, with the pictures where the first one of the file is found."""
    files = _unnamed(folder)
    if len(files) != 1:
        return None
    places = [folder, folder / "images", folder / "images" / "default"]
    name = _first_picture(files[0])
    there = _holding(places, name)
    if not there:
        inside = _holding(sorted(one for one in folder.iterdir() if one.is_dir()), name)
        there = inside if len(inside) == 1 else []
    return Split(files[0], there[0] if there else folder)


def _holding(places: list[Path], name: str) -> list[Path]:
    """Return those of `places` in which `name` is the path of a file; if there are none, in which an end of it is."""
    whole = [place for place in places if os.path.isfile(place / name)]
    return whole or [place for place in places if find_end(place, name) is not None]


def _first_picture(annotations: Path) -> str:
    """Return the file name of the first picture; of a file that is no COCO file, whose reader will say so, any."""
    try:
        name = json.loads(annotations.read_bytes())["images"][0]["file_name"]
    except (ValueError, LookupError, TypeError):
        return ""
    return name if isinstance(name, str) else ""
