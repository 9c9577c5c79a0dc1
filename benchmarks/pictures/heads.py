"""Heads: in which direction each head of an encoder layer looks, from every other pixel of the finest level."""

from pathlib import Path

from benchmarks.pictures.canvas import HEADS, canvas, show_scene
from benchmarks.pictures.files import save_figure
from benchmarks.pictures.run import Run, look

SCENE, STEP = 2, 2  # every second pixel in each direction


def draw(run: Run, path: Path) -> Path:
    """Draw arrows from each pixel to the mean of a head's points, weighted by attention, and return `path`."""
    scene = look(run.trained(), SCENE)
    layer = [layer for layer in scene.layers if layer.is_encoder][-1]
    rows, columns = layer.spatial_shapes[0]
    chosen = [row * columns + column for row in range(0, rows, STEP) for column in range(0, columns, STEP)]
    weights = layer.weights[chosen] / layer.weights[chosen].sum(-1, keepdim=True)  # [q, M, T]
    ends = (layer.locations[chosen] * weights[..., None]).sum(-2)  # [q, M, 2]
    starts = layer.references[chosen, 0, :2]  # [q, 2]
    figure, panels = canvas(5.6, 2, 2)
    for head, panel in enumerate(panels):
        show_scene(panel, scene)
        (x, y), (u, v) = starts.unbind(-1), (ends[:, head] - starts).unbind(-1)
        panel.quiver(
            x.tolist(),
            y.tolist(),
            u.tolist(),
            v.tolist(),
            color=HEADS[head],
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.008,
            edgecolor="black",
            linewidth=0.4,
        )
        panel.set_title(f"head {head}", fontsize=10)
    return save_figure(figure, path)
