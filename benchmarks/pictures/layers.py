"""Layers: where one query of the decoder looks, layer by layer."""

from pathlib import Path

from benchmarks.pictures.canvas import add_legend, canvas, show_points, show_reference, show_scene
from benchmarks.pictures.files import save_figure
from benchmarks.pictures.run import Run, look

SCENE = 2
MARGIN = 4  # pixels of the scene around the points


def draw(run: Run, path: Path) -> Path:
    """Draw a panel for each layer of the decoder, and return `path`."""
    scene = look(run.trained(), SCENE)
    layers = [layer for layer in scene.layers if not layer.is_encoder]
    query = scene.detections[0].query
    points = [point for layer in layers for point in layer.locations[query].flatten(0, -2).tolist()]
    centre = [(min(axis) + max(axis)) / 2 for axis in zip(*points, strict=True)]
    half = max(max(axis) - min(axis) for axis in zip(*points, strict=True)) / 2 + MARGIN
    view = (centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
    figure, panels = canvas(2.6, 1, len(layers))
    for panel, layer in zip(panels, layers, strict=True):
        show_scene(panel, scene, view)
        show_reference(panel, layer, query)
        show_points(panel, layer, query)
        panel.set_title(layer.name, fontsize=10)
    add_legend(figure, layers[0].num_heads, len(layers[0].num_points), columns=4)
    return save_figure(figure, path)
