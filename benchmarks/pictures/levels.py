"""Levels: where one pixel of the encoder looks, a panel for each level."""

from pathlib import Path

from benchmarks.pictures.canvas import add_legend, canvas, show_points, show_reference, show_scene
from benchmarks.pictures.files import save_figure
from benchmarks.pictures.run import Run, look

SCENE, POSITION = 3, (103.0, 96.0)  # pixels of the scene


def draw(run: Run, path: Path) -> Path:
    """Draw the points of the last encoder layer on the grid of each level, and return `path`."""
    scene = look(run.trained(), SCENE)
    layer = [layer for layer in scene.layers if layer.is_encoder][-1]
    query = scene.query(layer, position=POSITION)
    height, width = scene.size
    figure, panels = canvas(3.3, 1, len(layer.spatial_shapes))
    for level, (panel, (rows, columns)) in enumerate(zip(panels, layer.spatial_shapes, strict=True)):
        show_scene(panel, scene)
        panel.vlines([i * width / columns for i in range(1, columns)], 0, height, "white", linewidths=0.4, alpha=0.35)
        panel.hlines([i * height / rows for i in range(1, rows)], 0, width, "white", linewidths=0.4, alpha=0.35)
        show_reference(panel, layer, query)
        show_points(panel, layer, query, range(level, level + 1))
        panel.set_title(f"level {level}: {rows} × {columns} pixels", fontsize=10)
    add_legend(figure, layer.num_heads)
    return save_figure(figure, path)
