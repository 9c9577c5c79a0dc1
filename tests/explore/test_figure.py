"""The figure: each panel holds exactly the points of the record."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from explore_cases import DETECTIONS, SHAPES, SIZE, expected_points, recorded, small_scene
from matplotlib.collections import PathCollection

from deform_attn.explore import plot_sampling


def drawn(figure):
    """Return (head marker's place, x, y, weight) of the points of each panel."""
    panels = [panel for panel in figure.axes if panel.get_title()]
    found = []
    for panel in panels:
        clouds = [one for one in panel.collections if isinstance(one, PathCollection)]
        rows = [
            (i, *xy, w)
            for i, one in enumerate(clouds)
            for xy, w in zip(one.get_offsets(), one.get_array(), strict=True)
        ]
        found.append(np.array(sorted(rows)))
    return panels, found


def expected(entry, query, level, heads=None):
    """Return the same from the record, places clamped to a quarter of the picture around it."""
    height, width = SIZE
    return np.array(
        sorted(
            (
                h if heads is None else heads.index(h),
                np.clip(x, -width / 4, 1.25 * width),
                np.clip(y, -height / 4, 1.25 * height),
                w,
            )
            for h, v, x, y, w in expected_points(entry, query)
            if v == level and (heads is None or h in heads)
        )
    )


@pytest.mark.parametrize("layer", ["decoder 0", "decoder 1", "decoder 2"])
def test_the_points_of_a_detection_are_those_of_the_record_one_panel_a_level(layer):
    scene = small_scene(records=recorded())
    figure = plot_sampling(scene, detection=1, layer=layer)
    panels, found = drawn(figure)
    assert [panel.get_title() for panel in panels] == ["level 0: 7 × 11 pixels", "level 1: 4 × 6 pixels"]
    entry = scene.records[2 + int(layer[-1])]
    for level in range(2):
        np.testing.assert_allclose(found[level], expected(entry, DETECTIONS[1].query, level), rtol=1e-5, atol=1e-4)
    assert figure.get_suptitle() == f"{layer}, bush 0.62"


def test_a_position_an_encoder_layer_a_head_and_a_level_can_be_chosen():
    scene = small_scene(records=recorded())
    figure = plot_sampling(scene, position=(150, 100), layer="encoder 1", head=2, level=0, pixel_level=1, zoom=True)
    (panel,), (points,) = drawn(figure)
    H, W = SHAPES[1]
    query = SHAPES[0][0] * SHAPES[0][1] + int(100 / SIZE[0] * H) * W + int(150 / SIZE[1] * W)
    np.testing.assert_allclose(points, expected(scene.records[1], query, 0, [2]), rtol=1e-5, atol=1e-4)
    left, right = panel.get_xlim()
    assert 0 < right - left <= 1.6 * SIZE[1]
    assert all(left <= x <= right for x in points[:, 1])
    assert figure.get_suptitle() == f"encoder 1, query {query} from (150, 100)"


@pytest.mark.parametrize("zoom", [False, True])
def test_the_legend_names_all_and_nothing_covers_anything(zoom):
    figure = plot_sampling(small_scene(), detection=0, zoom=zoom)
    figure.draw_without_rendering()
    panels = [panel for panel in figure.axes if panel.get_title()]
    parts = [*figure.axes, *figure.legends, *(panel.title for panel in panels), figure._suptitle]
    boxes = [part.get_window_extent() for part in parts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["head 0", "head 1", "head 2", "reference point", "reference box", "found"]


def test_a_figure_is_drawn_and_saved_without_pyplot(tmp_path):
    plot_sampling(small_scene(), detection=0, title="one").savefig(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    code = "import sys, deform_attn.explore; print([m for m in sys.modules if m in ('matplotlib', 'PIL')])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"detection": 3}, "detection: expected a number below 3, got 3"),
        ({"detection": 0, "head": 3}, "head: expected a number below 3, got 3; leave it out to draw all"),
        ({"detection": 0, "level": -1}, "level: expected a number below 2, got -1"),
        ({"detection": 0, "layer": "decoder 5"}, "layer: expected one of encoder 0, "),
        ({}, "detection, position: expected one of the two"),
    ],
)
def test_what_there_is_not_is_refused(options, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        plot_sampling(small_scene(), **options)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'deform-attn\[explore\]'"):
        plot_sampling(small_scene(), detection=0)
