"""A page: one HTML file that shows where each layer looked, and needs nothing else, not even a network."""

import base64
import hashlib
import html
import json
import os
import re
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from deform_attn.explore.packing import NOWHERE, STEPS, Kept, keep_pixels, keep_queries, pack, query_bytes
from deform_attn.explore.picture import picture_uri
from deform_attn.explore.scene import Scene

MOST_BYTES = 8_000_000
"""Of the layers' numbers on a page; of more, a regular part is kept."""

MARGIN = 1 / 16
"""Of the picture's longer side: how far beyond the picture points are drawn. Those further out are counted."""

_LOST = re.compile("[\ud800-\udfff]")  # what Python makes of bytes in a file's name that are no UTF-8
_FOR_DECODER = 0.75  # of the bytes, if there is an encoder, too


def write_page(
    scene: Scene,
    path: str | os.PathLike[str],
    *,
    title: str = "What it attends to",
) -> None:
    """Write a page with the picture and its detections that shows, for what is pointed at, each layer's points.

    It is one file that loads nothing. Locations are at most 1/65,534 of the picture's side off those of the records.
    Where the layers' numbers would take more than 8 MB, it keeps a regular part of the queries, and says which.

    Args:
        scene: what to show.
        path: the file to write, whole or not at all.
        title: of the page.

    Raises:
        OSError: `path` cannot be written.
        ValueError: more is to be kept than a page can hold.

    Example:
        >>> from deform_attn.explore import write_page
        >>> write_page(scene, "page.html", title="tree.jpg")  # doctest: +SKIP
    """
    content = page(scene, title=title)
    path = Path(path)
    if path.parent.exists() and not path.parent.is_dir():
        raise NotADirectoryError(
            f"{path.parent}: is not a folder, so {path.name} cannot be written there; choose another"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)


def page(scene: Scene, *, title: str = "What it attends to") -> str:
    """Return the text of the page that `write_page` writes."""
    script = "\n".join(_part(f"page_{part}.js") for part in ("numbers", "drawing", "controls"))
    return Template(_part("page.html")).substitute(
        title=html.escape(_LOST.sub("\N{REPLACEMENT CHARACTER}", title)),
        style=_part("page.css"),
        script=script,
        hash=_hash(f"\n{script}"),
        # No label can end the element, or begin a comment in it.
        data=json.dumps(_content(scene), allow_nan=False).replace("<", "\\u003c"),
    )


def _content(scene: Scene) -> dict[str, Any]:
    """Return all that the script reads, ready for JSON."""
    height, width = scene.size
    detections = [
        {"query": one.query, "box": one.box, "label": one.label, "score": one.score, "caption": one.caption}
        for one in scene.detections
    ]
    return {
        "width": width,
        "height": height,
        "margin": MARGIN,
        "steps": STEPS,
        "nowhere": NOWHERE,
        "picture": picture_uri(scene.image),
        "detections": detections,
        "layers": [pack(layer, kept, scene.size) for layer, kept in zip(scene.layers, kept_of(scene), strict=True)],
    }


def kept_of(scene: Scene, most_bytes: int = MOST_BYTES) -> list[Kept]:
    """Return which queries of each layer fit into `most_bytes`: the decoder's come first, then the encoder's pixels."""
    encoders = [layer for layer in scene.layers if layer.is_encoder]
    decoders = [layer for layer in scene.layers if not layer.is_encoder]
    wanted = {detection.query for detection in scene.detections}
    # The same queries in each of them, so that any can be followed through the layers.
    share = int(most_bytes * (_FOR_DECODER if encoders else 1))
    most = share // max(sum(map(query_bytes, decoders)), 1)
    of_decoders = [keep_queries(layer, wanted, most) for layer in decoders]
    pairs = zip(of_decoders, decoders, strict=True)
    left = most_bytes - sum(len(kept.queries) * query_bytes(layer) for kept, layer in pairs)
    most = left // max(sum(map(query_bytes, encoders)), 1)
    of_encoders = [keep_pixels(layer, most) for layer in encoders]
    return [(of_encoders if layer.is_encoder else of_decoders).pop(0) for layer in scene.layers]


def _part(name: str) -> str:
    return (files("deform_attn.explore") / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Return the name by which a page's policy allows just this script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
