"""Picture names: which files of a folder are meant by file names that another system may have written."""

import contextlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from deform_attn.detr.errors import printable, quoted


class Found(NamedTuple):
    """Files by the id of their image; the ids of those `moved`, found by an end; and files that several names mean."""

    files: dict[int, Path]
    moved: list[int]
    rivals: dict[int, Path]


def find_files(folder: Path, names: Mapping[int, str]) -> Found:
    """Return the file that each of `names` (by the id of its image) means.

    Most are paths relative to `folder`. Of one that is none, such as `images\\\\0.png` on another system than Windows,
    `/data/upload/1/0.png`, `C:\\\\trees\\\\0.png` or `file:///trees/0.png`, the longest end that is a path in `folder`
    counts, unless another name means the same file: then it is among the `rivals`. Where there is none, the only file
    counts whose path differs from such an end in nothing but case and the form of accents, which other systems ignore.

    Example:
        >>> find_files(Path("trees"), {1: "nowhere.png"})
        Found(files={}, moved=[], rivals={})
    """
    files: dict[int, Path] = {}
    ends: dict[int, str] = {}
    for image_id, name in names.items():
        whole = os.path.join(folder, name)
        if os.path.isfile(whole):
            files[image_id] = Path(whole)
        elif (end := find_end(folder, name)) is not None:
            ends[image_id] = end
    if missing := {image_id: name for image_id, name in names.items() if image_id not in files | ends}:
        alike = _by_plain_path(folder)
        for image_id, name in missing.items():
            paths = next((alike[plain] for plain in map(_plain, _ends(name)) if plain in alike), [])
            if len(paths) == 1:
                ends[image_id] = paths[0]
    if not ends:
        return Found(files, [], {})

    meant = {**files, **{image_id: folder / end for image_id, end in ends.items()}}
    names_of: dict[str, set[str]] = defaultdict(set)
    for image_id, file in meant.items():
        names_of[os.path.normpath(file)].add(names[image_id])
    rivals = {image_id: meant[image_id] for image_id in ends if len(names_of[os.path.normpath(meant[image_id])]) > 1}
    moved = [image_id for image_id in ends if image_id not in rivals]
    return Found({image_id: file for image_id, file in meant.items() if image_id not in rivals}, moved, rivals)


def find_end(folder: Path, name: str) -> str | None:
    """Return the longest end of `name` that is the path of a file in `folder`, None if there is none."""
    return next((end for end in _ends(name) if os.path.isfile(os.path.join(folder, end))), None)


def advice_on(folder: Path, name: str, rival: Path | None) -> str:
    """Return what to do where no file is meant by `name`, or `rival` may be, but by other names as well."""
    if rival is not None:
        meant = printable(rival)
        return f"several records could mean {meant}; make each file_name the path of its file in {folder}"
    if re.search(r"^/|[\\:?%]", name):
        return (
            f"{quoted(name)} seems to be from another system, and no end of it is a file in {folder}; put the image "
            "there, or make file_name its path in that folder, with / between the parts"
        )
    return "add it or take its record out"


def _by_plain_path(folder: Path) -> dict[str, list[str]]:
    """Return the paths of all files in `folder`, by what `_plain` makes of them."""
    found: dict[str, list[str]] = defaultdict(list)
    for place, _, files in os.walk(folder):
        for file in files:
            path = Path(place, file).relative_to(folder).as_posix()
            found[_plain(path)].append(path)
    return found


def _plain(path: str) -> str:
    """Return a path as systems compare it that ignore case, and whether an accent is a character of its own."""
    return unicodedata.normalize("NFC", path.casefold())


def _ends(name: str) -> Iterator[str]:
    """Yield the ends of all that `name` may say, the longest first; none leads out of a folder."""
    for reading in dict.fromkeys(_readings(name)):
        parts = [part for part in reading.replace("\\", "/").split("/") if part not in ("", ".") and part[-1] != ":"]
        climbs = [i for i, part in enumerate(parts) if part == ".."]
        for start in range(climbs[-1] + 1 if climbs else 0, len(parts)):
            yield "/".join(parts[start:])


def _readings(name: str) -> Iterator[str]:
    """Yield what `name` may say: of an address what it asks for (Label Studio's `?d=`) and its path; then itself."""
    if "?" in name:
        with contextlib.suppress(ValueError):  # no address, though it looks like one
            address = urlsplit(name)
            yield from parse_qs(address.query).get("d", ())
            yield unquote(address.path)
    yield name
    yield unquote(name)
