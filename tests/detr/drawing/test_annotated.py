"""An annotated picture: its size, its lines and its captions."""

import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from deform_attn.detr.data.base import Category
from deform_attn.detr.drawing.annotated import annotate
from deform_attn.detr.drawing.marks import category_colour
from deform_attn.detr.model.detections import Detections

CATEGORIES = (Category(1, "cat"), Category(2, "straße Ж"))


def colour(label):
    return np.array([round(255 * part) for part in to_rgb(category_colour(label))])


def drawn(size, found):
    return np.asarray(annotate(Image.new("RGB", size, "black"), found, CATEGORIES)).astype(int)


def test_each_box_has_the_colour_of_its_category_on_all_four_sides():
    found = Detections(torch.tensor([[40.0, 60, 240, 260], [300, 200, 500, 400]]), torch.ones(2), torch.tensor([0, 1]))
    picture = drawn((600, 500), found)
    assert picture.shape == (500, 600, 3)
    for label, (left, top, right, bottom) in enumerate(found.boxes.long().tolist()):
        row, column = (top + bottom) // 2, (left + right) // 2
        for y, x in ((row, left + 1), (row, right - 1), (top + 1, column), (bottom - 1, column)):
            assert (picture[y, x] == colour(label)).all()
        assert (picture[row, column] == 0).all()


def test_captions_are_written_on_a_ground_of_the_same_colour():
    found = Detections(torch.tensor([[200.0, 200, 400, 400]]), torch.tensor([0.5]), torch.tensor([1]))
    picture = drawn((600, 500), found)
    ground = (picture[:199] == colour(1)).all(-1)  # above the box
    assert ground.sum() > 200
    rows, columns = np.nonzero(ground)
    inside = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (inside.sum(-1) < 100).sum() > 50  # black letters


def test_a_small_picture_is_enlarged_by_a_whole_factor_and_a_picture_keeps_its_pixels():
    found = Detections(torch.tensor([[10.0, 10, 50, 40]]), torch.tensor([0.5]), torch.tensor([0]))
    picture = drawn((100, 70), found)
    assert picture.shape == (350, 500, 3)
    assert (picture[125, 51] == colour(0)).all()
    original = Image.new("RGB", (600, 500), "black")
    annotate(original, found, CATEGORIES)
    assert np.asarray(original).max() == 0


def test_nothing_found_is_the_picture_itself():
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert drawn((600, 500), nothing).max() == 0
