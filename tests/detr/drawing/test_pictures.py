"""Pictures: what is drawn, and that nothing in them covers anything else."""

import builtins
import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from deform_attn.detr.data.base import Category
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.drawing import pictures
from deform_attn.detr.drawing.captions import intersection, place_captions
from deform_attn.detr.drawing.pictures import draw_detections
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import atomic_path
from deform_attn.detr.model.detections import Detections

CATEGORIES = (Category(1, "cat"), Category(2, "bird"))


def random_rectangles(count, seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 250, (count, 2))
    return [tuple(box) for box in np.concatenate((low, low + rng.uniform(8, 50, (count, 2))), axis=1).tolist()]


def shows(path, colour):
    """Whether the picture at `path` has a pixel of exactly this colour."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    return bool((pixels == np.round(np.array(to_rgb(colour)) * 255)).all(-1).any())


def one(box, label=0, score=0.9):
    return Detections(torch.tensor([box]), torch.tensor([score]), torch.tensor([label]))


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures that are saved."""
    figures = []

    def keep(figure, path):
        figures.append(figure)

    monkeypatch.setattr(pictures, "save", keep)
    return figures


def extents(artists):
    return [artist.get_window_extent() for artist in artists]


def test_a_caption_with_room_sits_above_its_box_flush_left():
    assert place_captions([(50, 50, 90, 90)], [(30, 10)], (0, 0, 300, 300)) == [(50, 40, 80, 50)]


def test_a_caption_without_room_above_goes_below():
    assert place_captions([(50, 4, 90, 40)], [(30, 10)], (0, 0, 300, 300)) == [(50, 40, 80, 50)]


def test_a_caption_avoids_other_boxes():
    boxes = [(50, 50, 90, 90), (40, 20, 100, 49)]
    place = place_captions(boxes, [(30, 10), (30, 10)], (0, 0, 300, 300))[0]
    assert intersection(place, boxes[1]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_captions_never_cover_each_other_and_stay_in_the_frame(seed):
    boxes = random_rectangles(40, seed)
    places = [place for place in place_captions(boxes, [(34, 11)] * 40, (0, 0, 300, 300)) if place]
    assert len(places) > 30
    assert all(place[0] >= 0 and place[1] >= 0 and place[2] <= 300 and place[3] <= 300 for place in places)
    assert all(intersection(a, b) == 0 for a, b in itertools.combinations(places, 2))


def test_a_caption_that_fits_nowhere_is_left_out():
    box = (0, 0, 10, 20)
    places = place_captions([box, box], [(20, 15), (20, 15)], (0, 0, 30, 20))
    assert places == [(10, 0, 30, 15), None]


def test_right_and_wrong_detections_have_their_colours(tmp_path):
    image, truth = torch.zeros(3, 60, 80), one([20.0, 20.0, 40.0, 50.0])
    draw_detections([image], [one([21.0, 20.0, 40.0, 49.0])], CATEGORIES, tmp_path / "right.png", truths=[truth])
    draw_detections(
        [image], [one([21.0, 20.0, 40.0, 49.0], label=1)], CATEGORIES, tmp_path / "label.png", truths=[truth]
    )
    assert shows(tmp_path / "right.png", pictures._RIGHT)
    assert shows(tmp_path / "label.png", pictures._WRONG)


@pytest.mark.parametrize(
    ("found", "title", "captions"),
    [
        (one([21.0, 20.0, 40.0, 49.0]), "1 of 1 found, 0 wrong", {"cat 0.90"}),
        (one([21.0, 20.0, 40.0, 49.0], label=1), "0 of 1 found, 1 wrong", {"bird 0.90", "cat missed"}),
        (one([60.0, 20.0, 70.0, 49.0]), "0 of 1 found, 1 wrong", {"cat 0.90", "cat missed"}),
        (one([21.0, 20.0, 40.0, 49.0], score=0.3), "0 of 1 found, 0 wrong", {"cat missed"}),
    ],
)
def test_what_is_right_wrong_and_missed_is_said(drawn, found, title, captions):
    truth = one([20.0, 20.0, 40.0, 50.0])
    draw_detections([torch.zeros(3, 60, 80)], [found], CATEGORIES, "unused.png", truths=[truth])
    assert drawn[0].axes[0].get_title() == title
    assert {text.get_text() for text in drawn[0].texts} == captions


def test_a_second_detection_of_the_same_box_is_wrong(drawn):
    truth = one([20.0, 20.0, 40.0, 50.0])
    twice = Detections(truth.boxes.repeat(2, 1), torch.tensor([0.6, 0.8]), truth.labels.repeat(2))
    draw_detections([torch.zeros(3, 60, 80)], [twice], CATEGORIES, "unused.png", truths=[truth])
    assert drawn[0].axes[0].get_title() == "1 of 1 found, 1 wrong"


def test_without_truths_each_category_has_a_colour_and_a_line_in_the_legend(drawn):
    found = [one([20.0, 20.0, 40.0, 50.0]), one([20.0, 20.0, 40.0, 50.0], label=1)]
    draw_detections([torch.zeros(3, 60, 80)] * 2, found, CATEGORIES, "unused.png")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["cat", "bird"]
    colours = {panel.patches[0].get_edgecolor() for panel in drawn[0].axes}
    assert len(colours) == 2


def test_boxes_are_drawn_in_the_frame_they_refer_to(drawn):
    draw_detections(
        [torch.zeros(3, 30, 40)], [one([40.0, 10.0, 80.0, 50.0])], CATEGORIES, "unused.png", sizes=[(60, 80)]
    )
    panel = drawn[0].axes[0]
    assert panel.patches[0].get_bbox().extents.tolist() == [40, 10, 80, 50]
    assert panel.images[0].get_extent() == [0, 80, 60, 0]


@pytest.mark.parametrize("pictures_in_grid", [1, 2, 7])
def test_no_caption_title_or_legend_covers_another(drawn, pictures_in_grid):
    scenes = DigitScenes("val", pictures_in_grid)
    samples = list(scenes)
    truths = [Detections.of_sample(sample) for sample in samples]
    found = [Detections(truth.boxes[1:] + 0.5, truth.scores[1:], truth.labels[1:]) for truth in truths]
    draw_detections([sample.image for sample in samples], found, scenes.categories, "unused.png", truths=truths)
    figure = drawn[0]
    panels, titles = figure.axes, [panel.title for panel in figure.axes]
    assert len(panels) == pictures_in_grid
    assert len(figure.texts) == sum(len(truth.labels) for truth in truths)
    for group in (extents([*figure.texts, *titles, *figure.legends]), extents([*panels, *titles, *figure.legends])):
        assert not any(a.overlaps(b) for a, b in itertools.combinations(group, 2))
        assert all(figure.bbox.x0 <= a.x0 and a.x1 <= figure.bbox.x1 for a in group)
        assert all(figure.bbox.y0 <= a.y0 and a.y1 <= figure.bbox.y1 for a in group)


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="images: expected at least one"):
        draw_detections([], [], CATEGORIES, "unused.png")


def test_an_atomic_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    for text in ("old", "new"):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
            assert temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def fail_half_way(path):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="killed"):
        fail_half_way(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    real = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with (
        pytest.raises(ModuleNotFoundError, match=r"sklearn is not installed.*pip install 'deform-attn\[detr\]'"),
        detr_extra(),
    ):
        import sklearn  # noqa: F401
