"""A figure: where one query of one layer looks, drawn with matplotlib, without pyplot and its global state."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deform_attn.explore.extra import explore_extra
from deform_attn.explore.layer import Layer
from deform_attn.explore.picture import picture_pixels
from deform_attn.explore.scene import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL, _MOST_COLUMNS = 3.2, 4  # inches; panels in a row
_MARKERS = "osD^v<>p*hXP"  # of the heads, in turn
_MOST_GRID_LINES = 48  # of a level; a denser grid is only grey
_FARTHEST = 0.25  # beyond the border that points are drawn, as a share of the picture
_BLUE, _DARK = "#4cc3ff", "#333333"
_POINTS: dict[str, Any] = {"cmap": "YlOrRd", "edgecolors": "black", "linewidths": 0.6, "zorder": 3}
_CROSS: dict[str, Any] = {"marker": "+", "markersize": 13, "markeredgewidth": 2, "color": _BLUE, "zorder": 4}


def plot_sampling(
    scene: Scene,
    *,
    detection: int | None = None,
    position: tuple[float, float] | None = None,
    layer: int | str | None = None,
    head: int | None = None,
    level: int | None = None,
    pixel_level: int = 0,
    zoom: bool = False,
    title: str | None = None,
) -> "Figure":
    """Return a figure of where one query looks: a panel a level, with the level's pixels as a grid on the picture.

    A point's shape shows its head, its colour and size its attention weight. Points off the picture are drawn beside
    it, those more than a quarter of the picture away at that distance.

    Args:
        scene: what to show.
        detection: which of the scene's detections looks, from 0.
        position: or (x, y) in pixels of the picture; `Scene.query` says which query looks from there.
        layer: its name, such as "decoder 2", or its place among the records. Default: the decoder's last.
        head: the only one to draw, from 0. Default: all.
        level: the only one to draw, from 0. Default: all.
        pixel_level: in an encoder's layer, the level whose pixels look.
        zoom: show only the part of the picture around the points.
        title: what to write above the panels. Default: what is shown.

    Raises:
        ValueError: there is no such detection, layer, head or level.
        ModuleNotFoundError: matplotlib is not installed.

    Example:
        >>> from deform_attn.explore import plot_sampling
        >>> plot_sampling(scene, detection=0, layer="decoder 2").savefig("tree.png")  # doctest: +SKIP
    """
    with explore_extra():
        from matplotlib.figure import Figure

    chosen = scene.layer(layer)
    heads = _one_or_all("head", head, chosen.num_heads)
    levels = _one_or_all("level", level, len(chosen.spatial_shapes))
    query = scene.query(chosen, detection=detection, position=position, pixel_level=pixel_level)
    height, width = scene.size
    extent = torch.tensor([width, height], dtype=torch.float64)
    inside = chosen.locations[query].double() / extent  # [M, T, 2]
    points = inside.clamp(-_FARTHEST, 1 + _FARTHEST) * extent
    weights = chosen.weights[query].double()
    strongest = float(weights.max()) or 1.0
    shown = torch.cat([points[heads, chosen.points_of(i)].flatten(0, -2) for i in levels])
    left, top, right, bottom = _view(torch.cat((shown, _corners(chosen, query))), extent, zoom=zoom)

    columns = min(len(levels), _MOST_COLUMNS)
    rows = math.ceil(len(levels) / columns)
    size = (max(columns, 2) * _PANEL, rows * (_PANEL * (bottom - top) / (right - left) + 0.1) + 0.6)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for spare in grid[len(levels) :]:
        spare.remove()
    panels = list(grid[: len(levels)])
    pixels = picture_pixels(scene.image)
    for panel, i in zip(panels, levels, strict=True):
        panel.imshow(pixels, extent=(0, width, height, 0), interpolation="bilinear")
        panel.set(xticks=[], yticks=[], facecolor="#bbbbbb", xlim=(left, right), ylim=(bottom, top))
        panel.set_title(f"level {i}: {' × '.join(map(str, chosen.spatial_shapes[i]))} pixels", fontsize=8)
        _draw_grid(panel, (height, width), chosen.spatial_shapes[i])
        if detection is not None:
            _outline(panel, scene.detections[detection].box, "white")
        for which in heads:
            strength, order = weights[which, chosen.points_of(i)].sort()  # the strongest on top
            x, y = points[which, chosen.points_of(i)][order].unbind(-1)
            drawn = panel.scatter(
                x.tolist(),
                y.tolist(),
                (14 + 66 * strength / strongest).tolist(),
                strength.tolist(),
                marker=_MARKERS[which % len(_MARKERS)],
                vmin=0,
                vmax=strongest,
                **_POINTS,
            )
        _draw_reference(panel, chosen, query, i)

    bar = figure.colorbar(drawn, ax=panels, shrink=0.8, aspect=25, pad=0.02)
    bar.set_label("attention weight", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _add_legend(figure, heads, with_box=chosen.references.shape[-1] == 4, found=detection is not None)
    if title is None:
        found = None if detection is None else scene.detections[detection].caption
        title = f"{chosen.name}, " + (found or f"query {query} from ({position[0]:.0f}, {position[1]:.0f})")  # type: ignore[index]
    figure.suptitle(title, fontsize=9)
    return figure


def _one_or_all(name: str, chosen: int | None, count: int) -> list[int]:
    if chosen is not None and not 0 <= chosen < count:
        raise ValueError(f"{name}: expected a number below {count}, got {chosen}; leave it out to draw all")
    return list(range(count)) if chosen is None else [chosen]


def _corners(layer: Layer, query: int) -> Tensor:
    """Return the reference points of a query, or the corners of its reference boxes, `[k, 2]`."""
    references = layer.references[query].double()  # [L or 1, 2 or 4]
    centres, half = references[:, :2], references[:, 2:] / 2
    return torch.cat((centres - half, centres + half)) if half.numel() else centres


def _view(points: Tensor, extent: Tensor, *, zoom: bool) -> list[float]:
    """Return the part of the picture to show as (left, top, right, bottom), with all of its `points [k, 2]` in it."""
    points = (points / extent)[points.isfinite().all(-1)].clamp(-_FARTHEST, 1 + _FARTHEST)
    low, high = (points.amin(0), points.amax(0)) if len(points) else (torch.zeros(2).double(), torch.ones(2).double())
    margin = 0.03  # so that the marker of a point off the picture is whole
    first = torch.zeros_like(low).where(low >= 0, low - margin)
    last = torch.ones_like(high).where(high <= 1, high + margin)
    if zoom:
        side = ((high - low).amax() * 1.3).clamp(min=0.2).minimum(last - first)
        # Around the points, yet with no more beside the picture than they need.
        first = ((low + high - side) / 2).maximum(first).minimum(last - side)
        last = first + side
    return (torch.cat((first, last)) * extent.repeat(2)).tolist()


def _draw_grid(panel: "Axes", size: tuple[int, int], shape: tuple[int, int]) -> None:
    """Draw the borders between the pixels of a level of `shape` (H, W) on a picture of `size` (H, W)."""
    if max(shape) > _MOST_GRID_LINES:
        return
    (height, width), (rows, columns) = size, shape
    style: dict[str, Any] = {"colors": "white", "linewidths": 0.4, "alpha": 0.3}
    panel.vlines([i * width / columns for i in range(1, columns)], 0, height, **style)
    panel.hlines([i * height / rows for i in range(1, rows)], 0, width, **style)


def _draw_reference(panel: "Axes", layer: Layer, query: int, level: int) -> None:
    x, y, *sides = layer.references[query, min(level, layer.references.shape[1] - 1)].tolist()
    if sides:
        _outline(panel, (x - sides[0] / 2, y - sides[1] / 2, x + sides[0] / 2, y + sides[1] / 2), _BLUE)
    panel.plot(x, y, **_CROSS)


def _outline(panel: "Axes", box: tuple[float, float, float, float], colour: str) -> None:
    """Draw the sides of `box`, with a dark rim so that they show on any background."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    left, top, right, bottom = box
    style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.6}
    patch = Rectangle((left, top), right - left, bottom - top, **style)
    patch.set_path_effects([Stroke(linewidth=2.6, foreground="black", alpha=0.5), Normal()])
    panel.add_patch(patch)


def _add_legend(figure: "Figure", heads: list[int], *, with_box: bool, found: bool) -> None:
    """Write a legend below the panels, dark like most pictures so that bright colours show."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linestyle": "none", "color": "#fd9a40", "markeredgecolor": "black", "markersize": 6}
    entries = [Line2D([], [], marker=_MARKERS[i % len(_MARKERS)], label=f"head {i}", **style) for i in heads]
    entries.append(Line2D([], [], linestyle="none", label="reference point", **_CROSS | {"markersize": 8}))
    if with_box:
        entries.append(Line2D([], [], color=_BLUE, label="reference box"))
    if found:
        entries.append(Line2D([], [], color="white", label="found"))
    look: dict[str, Any] = {"fontsize": 7.5, "facecolor": _DARK, "labelcolor": "white", "framealpha": 1.0}
    figure.legend(handles=entries, loc="outside lower center", ncols=min(len(entries), 6), edgecolor=_DARK, **look)
