"""Pictures: what is drawn, and that nothing in them covers anything else."""

import builtins
import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from deform_attn.detr.data.base import Category
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


class Drawn:
    """What `draw_detections` has drawn: the marks of each panel, its size, the titles and the legend."""

    def __init__(self):
        self.marks, self.sizes, self.titles, self.legend = [], [], [], []

    def captions(self, panel=0):
        return {mark.text for mark in self.marks[panel]} - {None}


@pytest.fixture
def drawn(monkeypatch):
    """Collect what is drawn."""
    seen, draw, arrange = Drawn(), pictures.draw_marks, pictures.contact_sheet

    def draw_and_keep(picture, marks, **options):
        seen.marks.append(marks)
        seen.sizes.append(picture.size)
        draw(picture, marks, **options)

    def arrange_and_keep(panels, titles, legend):
        seen.titles, seen.legend = titles, legend
        return arrange(panels, titles, legend)

    monkeypatch.setattr(pictures, "draw_marks", draw_and_keep)
    monkeypatch.setattr(pictures, "contact_sheet", arrange_and_keep)
    return seen


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
def test_what_is_right_wrong_and_missed_is_said(drawn, tmp_path, found, title, captions):
    truth = one([20.0, 20.0, 40.0, 50.0])
    draw_detections([torch.zeros(3, 60, 80)], [found], CATEGORIES, tmp_path / "sheet.png", truths=[truth])
    assert drawn.titles == [title]
    assert drawn.captions() == captions
    assert [entry.text for entry in drawn.legend] == ["right", "wrong", "to be found"]


def test_a_second_detection_of_the_same_box_is_wrong(drawn, tmp_path):
    truth = one([20.0, 20.0, 40.0, 50.0])
    twice = Detections(truth.boxes.repeat(2, 1), torch.tensor([0.6, 0.8]), truth.labels.repeat(2))
    draw_detections([torch.zeros(3, 60, 80)], [twice], CATEGORIES, tmp_path / "sheet.png", truths=[truth])
    assert drawn.titles == ["1 of 1 found, 1 wrong"]


def test_without_truths_each_category_has_a_colour_and_a_line_in_the_legend(drawn, tmp_path):
    found = [one([20.0, 20.0, 40.0, 50.0]), one([20.0, 20.0, 40.0, 50.0], label=1)]
    draw_detections([torch.zeros(3, 60, 80)] * 2, found, CATEGORIES, tmp_path / "sheet.png")
    assert [entry.text for entry in drawn.legend] == ["cat", "bird"]
    assert [entry.colour for entry in drawn.legend] == [marks[0].colour for marks in drawn.marks]
    assert len({marks[0].colour for marks in drawn.marks}) == 2
    assert all(shows(tmp_path / "sheet.png", entry.colour) for entry in drawn.legend)


def test_annotated_boxes_have_no_score_and_of_a_single_category_no_caption(drawn, tmp_path):
    boxes, sheet = [one([20.0, 20.0, 40.0, 50.0], score=1.0)], tmp_path / "sheet.png"
    for categories in (CATEGORIES, CATEGORIES[:1]):
        draw_detections([torch.zeros(3, 60, 80)], boxes, categories, sheet, show_scores=False)
    assert [drawn.captions(panel) for panel in (0, 1)] == [{"cat"}, set()]


def test_boxes_are_drawn_in_the_frame_they_refer_to(drawn, tmp_path):
    found = one([40.0, 10.0, 80.0, 50.0])
    draw_detections([torch.zeros(3, 30, 40)], [found], CATEGORIES, tmp_path / "sheet.png", sizes=[(60, 80)])
    assert drawn.sizes == [(500, 375)]
    assert drawn.marks[0][0].box == (250, 62.5, 500, 312.5)


def test_every_panel_of_a_sheet_lies_inside_the_height_of_the_tallest_frame(drawn, tmp_path):
    images, nothing = (
        [torch.zeros(3, 30, 60), torch.zeros(3, 30, 30), torch.zeros(3, 90, 30)],
        one([0, 0, 1.0, 1], 0, 0),
    )
    draw_detections(images, [nothing] * 3, CATEGORIES, tmp_path / "sheet.png")
    assert drawn.sizes == [(500, 250), (500, 500), (500, 1500)]


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
