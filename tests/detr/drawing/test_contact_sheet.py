"""A contact sheet: nothing in it covers anything else."""

import numpy as np
import pytest
from PIL import Image

from deform_attn.detr.drawing.contact_sheet import PANEL, Entry, contact_sheet
from deform_attn.detr.drawing.marks import Mark, draw_marks

SIZES = [(PANEL, 300), (200, 380), (PANEL, 120), (333, 333), (PANEL, 380), (90, 70), (401, 211)]


def panels(count):
    """Return pictures in colours that occur nowhere else on a sheet."""
    return [Image.new("RGB", size, (10 + i, 200, 90)) for i, size in enumerate(SIZES[:count])]


def where(sheet, colour):
    """Return the pixels of this colour as (left, top, right, bottom), and how many there are."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(-1))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), len(rows)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7])
def test_every_picture_is_there_whole_below_its_title(count):
    pictures = panels(count)
    sheet = contact_sheet(pictures, [f"title {i}" for i in range(count)], [Entry("#4cc3ff", "right")])
    pixels = np.asarray(sheet).astype(int)
    for picture in pictures:
        (left, top, right, bottom), area = where(sheet, picture.getpixel((0, 0)))
        assert (right - left, bottom - top) == picture.size
        assert area == picture.width * picture.height
        title = pixels[top - 26 : top - 1, left:right]
        assert (title.sum(-1) < 200).any()  # black letters
        assert (pixels[top - 2, left:right] > 250).all()  # that end above the frame
    assert sheet.width == max(min(count, 4), 2) * (PANEL + 12)


def test_a_sheet_without_titles_and_legend_is_its_pictures_and_the_space_between_them():
    sheet = contact_sheet(panels(1))
    assert sheet.size == (2 * (PANEL + 12), 300 + 24)
    box, _ = where(sheet, (10, 200, 90))
    assert box == (262, 12, 762, 312)


def test_a_legend_stays_on_the_sheet_however_many_entries_it_has():
    pictures, colours = panels(2), [f"#ff{i:02x}40" for i in range(40)]
    sheet = contact_sheet(pictures, (), [Entry(colour, f"category {colour}") for colour in colours])
    dark = where(sheet, (0x33, 0x33, 0x33))[0]
    assert 0 < dark[0] < dark[2] < sheet.width
    assert 12 + 300 < dark[1] < dark[3] <= sheet.height
    for i in range(40):
        (left, top, right, bottom), _ = where(sheet, (255, i, 64))
        assert dark[0] < left < right < dark[2]
        assert dark[1] < top < bottom < dark[3]


def test_a_dashed_entry_and_a_dashed_box_have_gaps():
    for dashed in (False, True):
        sheet = contact_sheet(panels(1), (), [Entry("#ff0040", "x", dashed)])
        (left, _, right, _), area = where(sheet, (255, 0, 64))
        assert (area == 3 * (right - left)) is not dashed
    picture = Image.new("RGB", (100, 80))
    draw_marks(picture, [Mark((20, 10, 80, 60), "#ff0040", dashed=True)], line=3, size=14)
    (left, top, right, bottom), _ = where(picture, (255, 0, 64))
    assert abs(np.array((left, top, right, bottom)) - (20, 10, 80, 60)).max() <= 6
    side = np.asarray(picture)[10, 20:80, 0]
    assert 20 < (side == 255).sum() < 40


def test_marks_without_a_text_have_no_caption():
    with_text, without = Image.new("RGB", (100, 80)), Image.new("RGB", (100, 80))
    draw_marks(with_text, [Mark((20, 30, 80, 60), "#ff0040", "x")], line=2, size=9)
    draw_marks(without, [Mark((20, 30, 80, 60), "#ff0040")], line=2, size=9)
    assert where(without, (255, 0, 64))[0] == (21, 31, 80, 60)
    assert where(with_text, (255, 0, 64))[0][1] < 30
