"""Training: where one pixel of the encoder looks before the first step and after the last."""

from pathlib import Path

from benchmarks.pictures.canvas import add_legend, canvas, show_points, show_reference, show_scene
from benchmarks.pictures.files import save_figure
from benchmarks.pictures.run import Run, look

SCENE, POSITION = 6, (62.0, 52.0)  # pixels of the scene


def draw(run: Run, path: Path) -> Path:
    """Draw the points of the last encoder layer of both detectors, and return `path`."""
    figure, panels = canvas(3.5, 1, 2)
    detectors = {"before training": run.untrained(), "after training": run.trained()}
    for panel, (title, detector) in zip(panels, detectors.items(), strict=True):
        scene = look(detector, SCENE)
        layer = [layer for layer in scene.layers if layer.is_encoder][-1]
        query = scene.query(layer, position=POSITION)
        show_scene(panel, scene)
        show_reference(panel, layer, query)
        show_points(panel, layer, query)
        panel.set_title(title, fontsize=10)
    add_legend(figure, layer.num_heads, len(layer.num_points), columns=4)
    return save_figure(figure, path)
