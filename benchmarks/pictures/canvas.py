"""A canvas: a figure as wide as a page, panels with a scene, and sampling points coloured by head."""

from typing import TYPE_CHECKING, Any

from deform_attn.explore import Scene
from deform_attn.explore.layer import Layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADS = ("#4cc3ff", "#ffa033", "#7ddc6f", "#ff8fb8")
LEVELS = ("o", "s", "^", "D")  # markers
WIDTH, DPI = 5.4, 150  # inches; twice the pixels of a phone
_CROSS: dict[str, Any] = {"marker": "+", "markersize": 12, "markeredgewidth": 2.4, "color": "white", "zorder": 5}
_DARK: dict[str, Any] = {"facecolor": "#333333", "edgecolor": "#333333", "labelcolor": "white", "framealpha": 1.0}


def canvas(height: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return a figure of this height in inches and its panels, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def show_scene(panel: "Axes", scene: Scene, view: tuple[float, float, float, float] | None = None) -> None:
    """Show the part `view` (left, top, right, bottom) of a scene's picture, by default all of it."""
    height, width = scene.size
    left, top, right, bottom = (0, 0, width, height) if view is None else view
    panel.imshow(scene.image, extent=(0, width, height, 0), interpolation="bilinear")
    panel.set(xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top), facecolor="#bbbbbb")


def show_points(panel: "Axes", layer: Layer, query: int, levels: "range | None" = None) -> None:
    """Show where a query looks: a colour for each head, a marker for each level, and the weight as the size."""
    strongest = float(layer.weights[query].max())
    for level in range(len(layer.num_points)) if levels is None else levels:
        for head in range(layer.num_heads):
            x, y = layer.locations[query, head, layer.points_of(level)].unbind(-1)  # [P]
            size = 16 + 84 * layer.weights[query, head, layer.points_of(level)] / strongest
            panel.scatter(
                x.tolist(),
                y.tolist(),
                size.tolist(),
                color=HEADS[head],
                marker=LEVELS[level],
                edgecolors="black",
                linewidths=0.7,
                zorder=4,
            )


def show_reference(panel: "Axes", layer: Layer, query: int) -> None:
    """Show a query's reference point as a cross, and its reference box where it has one."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    x, y, *sides = layer.references[query, 0].tolist()
    rim = [Stroke(linewidth=3.6, foreground="black", alpha=0.6), Normal()]
    if sides:
        corner = x - sides[0] / 2, y - sides[1] / 2
        style: dict[str, Any] = {"fill": False, "edgecolor": "white", "linewidth": 1.6, "zorder": 3}
        panel.add_patch(Rectangle(corner, *sides, path_effects=rim, **style))
    panel.plot(x, y, path_effects=rim, **_CROSS)


def add_legend(figure: "Figure", heads: int, levels: int = 0, *, columns: int = 5) -> None:
    """Add a legend of heads and levels below the panels."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black", "markersize": 8}
    entries = [Line2D([], [], marker="o", color=HEADS[i], label=f"head {i}", **style) for i in range(heads)]
    entries += [Line2D([], [], marker=LEVELS[i], color="white", label=f"level {i}", **style) for i in range(levels)]
    entries.append(Line2D([], [], linestyle="none", label="reference", **_CROSS))
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, fontsize=9, handletextpad=0.2, **_DARK)
