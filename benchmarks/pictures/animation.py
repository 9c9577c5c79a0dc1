"""The animation: the live page in a browser while the position that looks moves, as an animated WebP.

`PYTHONPATH=tests python -m benchmarks.pictures.animation` needs Chromium; the browser of the tests drives it.
"""

import argparse
import base64
import io
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import report
from benchmarks.evidence.results import IMAGES
from deform_attn.detr.files import atomic_path

if TYPE_CHECKING:
    from PIL.Image import Image

    from browser import Browser

PAGE = report.ROOT / "docs" / "_static" / "explore-digits.html"
OUT = IMAGES / "explore.webp"
SIZE = 880, 600  # of the window, in pixels
POSITIONS, QUICK, SLOW = 36, 120, 1300  # of one round of the position; milliseconds of a position, and of a detection


def build_parser() -> argparse.ArgumentParser:
    """Return what the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pictures.animation", description="film the live page of the gallery"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="page of `explore` (default: the gallery's)")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write (default: docs/images/explore.webp)")
    return parser


def main() -> None:
    """Write the animation."""
    options = build_parser().parse_args()
    from browser import Browser

    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        try:
            browser.open(options.page.resolve(), *SIZE)
            frames, durations = zip(*film(browser), strict=True)
        finally:
            browser.close()
    with atomic_path(options.out) as temporary:
        style = {"duration": list(durations), "loop": 0, "quality": 70, "method": 6}
        frames[0].save(temporary, "WEBP", save_all=True, append_images=frames[1:], **style)
    print(f"wrote {options.out}, {len(frames)} frames, {options.out.stat().st_size / 1e3:.0f} kB")


def film(browser: "Browser") -> "Iterator[tuple[Image, int]]":
    """Yield (frame, milliseconds): a pixel of the encoder that moves in an ellipse, and then three detections."""
    choose(browser, "encoder 1")
    left, top, width, height = browser.run(
        "(() => { const r = document.getElementById('image').getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height]; })()"
    )
    for i in range(POSITIONS):
        angle = 2 * math.pi * i / POSITIONS
        browser.move(left + width * (0.5 + 0.32 * math.cos(angle)), top + height * (0.5 + 0.32 * math.sin(angle)))
        yield picture(browser), QUICK
    choose(browser, "decoder 2")
    for i in range(3):
        browser.run(f"document.querySelectorAll('#found button')[{i}].click()")
        yield picture(browser), SLOW


def choose(browser: "Browser", layer: str) -> None:
    """Choose a layer by its name."""
    browser.run(
        "(() => { const s = document.getElementById('layer');"
        f" s.value = [...s.options].find((one) => one.text == {json.dumps(layer)}).value;"
        " s.dispatchEvent(new Event('change')); })()"
    )


def picture(browser: "Browser") -> "Image":
    """Return what the window shows."""
    from PIL import Image

    browser.settle()
    return Image.open(io.BytesIO(base64.b64decode(browser.screenshot()))).convert("RGB")


if __name__ == "__main__":
    main()
