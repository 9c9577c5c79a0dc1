"""A canvas: a matplotlib figure of panels, one picture each, drawn without pyplot and its global state."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from deform_attn.detr.drawing.captions import Rectangle, place_captions
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 160
_PANEL = 3.2  # inches, the width of a panel
_MOST_COLUMNS = 4
_CAPTION_SIZE = 6.5  # points
_CAPTION_RIM = 0.15  # around the text of a caption, as a share of its size
_DARK = "#333333"
# Bright enough for black letters, and told apart by those who see no red or no green.
_OF_CATEGORIES = (
    "#4cc3ff",
    "#ffa033",
    "#7ddc6f",
    "#ff8fb8",
    "#ffe14d",
    "#c5a3ff",
    "#5fe0d0",
    "#d9b38c",
    "#c9d1d9",
    "#ff7f6b",
)


def category_colour(label: int) -> str:
    """Return the colour of the boxes of the category with this label."""
    return _OF_CATEGORIES[label % len(_OF_CATEGORIES)]


def new_canvas(panels: int, aspect: float) -> "tuple[Figure, list[Axes]]":
    """Return a figure with `panels` panels in rows of at most four, each for a picture of height / width `aspect`."""
    with detr_extra():
        from matplotlib.figure import Figure

    columns = min(panels, _MOST_COLUMNS)
    rows = math.ceil(panels / columns)
    # The rest of the height is for the titles and the legend; the layout shares it out.
    size = (max(columns, 2) * _PANEL, rows * (_PANEL * aspect + 0.1) + 0.5)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for spare in grid[panels:]:
        spare.remove()
    return figure, list(grid[:panels])


def show_picture(panel: "Axes", image: Tensor, size: tuple[int, int]) -> None:
    """Show `image [3, H, W]` in a frame of coordinates that spans `size` (height, width)."""
    height, width = size
    pixels = image.detach().cpu().float().clamp(0, 1).permute(1, 2, 0).numpy()  # [H, W, 3]
    panel.imshow(pixels, extent=(0, width, height, 0), interpolation="bilinear")
    panel.set(xticks=[], yticks=[], facecolor="#bbbbbb")
    panel.set_autoscale_on(False)


def outline(panel: "Axes", box: Rectangle, colour: str, *, dashed: bool = False) -> None:
    """Draw the four sides of `box`, with a dark rim so that they show on any background."""
    from matplotlib.patches import Rectangle as Patch
    from matplotlib.patheffects import Normal, Stroke

    left, top, right, bottom = box
    style = {"linewidth": 1.0, "linestyle": (0, (3, 3))} if dashed else {"linewidth": 1.6}
    patch = Patch((left, top), right - left, bottom - top, fill=False, edgecolor=colour, **style)
    if not dashed:
        patch.set_path_effects([Stroke(linewidth=2.6, foreground="black", alpha=0.5), Normal()])
    panel.add_patch(patch)


def legend_line(colour: str, label: str, *, dashed: bool = False) -> "Artist":
    """Return a legend's entry for boxes outlined in `colour`."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, linestyle=(0, (3, 2)) if dashed else "-")


def add_legend(figure: "Figure", entries: "Sequence[Artist]") -> None:
    """Write a legend below the panels, dark like most pictures so that bright colours show."""
    if entries:
        style = {"fontsize": 7.5, "facecolor": _DARK, "labelcolor": "white", "framealpha": 1.0, "edgecolor": _DARK}
        figure.legend(handles=list(entries), loc="outside lower center", ncols=min(len(entries), 10), **style)


def write_captions(figure: "Figure", captions: "dict[Axes, list[tuple[Rectangle, str, str]]]") -> None:
    """Write (box, text, colour) into each panel, each text at its box and on no other; without a place it is left out.

    Come last: the places hold for the layout as it then is, which is frozen.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import FontProperties
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle as Patch

    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    font = FontProperties(size=_CAPTION_SIZE)
    measure = FigureCanvasAgg(figure).get_renderer().get_text_width_height_descent
    _, height, descent = measure("Mg", font, False)
    rim = _CAPTION_RIM * height
    to_figure = figure.transFigure.inverted().transform
    for panel, entries in captions.items():
        boxes = [_to_screen(panel, box) for box, _, _ in entries]
        sizes = [(measure(text, font, False)[0] + 4 * rim, height + 2 * rim) for _, text, _ in entries]
        frame = panel.get_window_extent()
        places = place_captions(boxes, sizes, (frame.x0, -frame.y1, frame.x1, -frame.y0))
        for (_, text, colour), box, place in zip(entries, boxes, places, strict=True):
            if place is None:
                continue
            left, top, right, bottom = place
            if left > box[2] or right < box[0] or top > box[3] or bottom < box[1]:  # away from its box: tie them
                middle = ((left + right) / 2, (top + bottom) / 2)
                nearest = (min(max(middle[0], box[0]), box[2]), min(max(middle[1], box[1]), box[3]))
                (x0, y0), (x1, y1) = to_figure([(x, -y) for x, y in (middle, nearest)])
                figure.add_artist(Line2D([x0, x1], [y0, y1], color=colour, linewidth=1))
            (x0, y0), (x1, y1) = to_figure([(left, -bottom), (right, -top)])
            figure.add_artist(Patch((x0, y0), x1 - x0, y1 - y0, facecolor=colour, edgecolor="none"))
            x, y = to_figure(((left + right) / 2, rim + descent - bottom))
            figure.text(x, y, text, fontproperties=font, color="black", ha="center", va="baseline")


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write the figure to `path`, whole or not at all; the suffix chooses the format, PNG without one."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:] or "png")


def _to_screen(panel: "Axes", box: Rectangle) -> Rectangle:
    """Return a box in pixels of the figure; they are counted upwards, so that minus them grows downwards."""
    (x0, y0), (x1, y1) = panel.transData.transform([box[:2], box[2:]]).tolist()
    return x0, -y0, x1, -y1
