"""Transforms: the box that is carried along is the box that can be seen in the pixels."""

import colorsys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deform_attn.detr.boxes import cxcywh_to_xyxy
from deform_attn.detr.data.base import Category, coco_from_samples
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.data.transforms import (
    ColourJitter,
    Compose,
    Crop,
    HorizontalFlip,
    QuarterTurns,
    Resize,
    VerticalFlip,
    change_colours,
    crop,
    flip_horizontally,
    flip_vertically,
    resize,
    turn,
)
from draws import draws

HEIGHT, WIDTH = 45, 64
ONE = (1 / 8, 0.4, 3 / 8, 0.8)  # corners, as fractions: columns 8 to 24, rows 18 to 36
ROUNDING = 1e-3  # pixels; a float32 fraction of 64 pixels is good to 4e-6, and a transform rounds a few times
PLENTY = draws(50)


def draw(corners, labels, height=HEIGHT, width=WIDTH):
    """Return a sample in which a box of label 0 is bright in red, of 1 in green, of 2 in blue; `corners` in pixels."""
    image = torch.zeros(3, height, width)
    for (left, top, right, bottom), label in zip(corners, labels, strict=True):
        image[label, top:bottom, left:right] = 1
    boxes = torch.tensor(corners, dtype=torch.float64).view(-1, 4) / torch.tensor([width, height, width, height])
    centres = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1)
    return Sample(image, centres.float(), torch.tensor(labels, dtype=torch.int64), 7, (height, width))


def one():
    return draw([(8, 18, 24, 36)], [1])


def none():
    return draw([], [])


def carried(sample):
    """Return the corners in pixels of the boxes of `sample`, by label."""
    _, height, width = sample.image.shape
    corners = cxcywh_to_xyxy(sample.boxes.double()) * torch.tensor([width, height, width, height])
    assert len(set(sample.labels.tolist())) == len(sample.labels)
    return dict(zip(sample.labels.tolist(), corners, strict=True))


def seen(sample, label):
    """Return the corners in pixels of what is bright in the channel of `label`; None if nothing is."""
    rows, columns = torch.nonzero(sample.image[label] > 0.5, as_tuple=True)
    if not len(rows):
        return None
    return torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).double()


def check(sample, tolerance):
    """Check that each box is where its label's channel is bright, and all that a transform promises."""
    for label, corners in carried(sample).items():
        torch.testing.assert_close(corners, seen(sample, label), rtol=0, atol=tolerance)
    assert sample.image.is_contiguous()
    assert (sample.image.dtype, sample.boxes.dtype, sample.labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert sample.image.min() >= 0
    assert sample.image.max() <= 1
    assert sample.boxes.shape == (len(sample.labels), 4)
    assert sample.image_id == 7


def test_the_check_fails_where_a_box_lies_a_pixel_off_or_has_anothers_label():
    good = one()
    check(good, 1e-3)
    with pytest.raises(AssertionError, match="not close"):
        check(replace(good, boxes=good.boxes + torch.tensor([1 / WIDTH, 0, 0, 0])), 0.5)
    with pytest.raises((AssertionError, TypeError)):
        check(replace(good, labels=torch.tensor([2])), 0.5)


@pytest.mark.parametrize(
    ("transform", "corners", "size"),
    [
        (flip_horizontally, (40, 18, 56, 36), (HEIGHT, WIDTH)),
        (flip_vertically, (8, 9, 24, 27), (HEIGHT, WIDTH)),
        (lambda sample: turn(sample, 0), (8, 18, 24, 36), (HEIGHT, WIDTH)),
        (lambda sample: turn(sample, 1), (18, 40, 36, 56), (WIDTH, HEIGHT)),
        (lambda sample: turn(sample, 2), (40, 9, 56, 27), (HEIGHT, WIDTH)),
        (lambda sample: turn(sample, 3), (9, 8, 27, 24), (WIDTH, HEIGHT)),
        (lambda sample: crop(sample, 4, 10, 50, 30, 0.5), (4, 8, 20, 26), (30, 50)),
        (lambda sample: crop(sample, 16, 0, 48, 40, 0.5), (0, 18, 8, 36), (40, 48)),
    ],
    ids=["flip", "flip vertically", "no turn", "a quarter", "a half", "three quarters", "crop", "crop through the box"],
)
def test_a_box_is_where_it_is_known_to_come_to_lie(transform, corners, size):
    before = one()
    after = transform(before)
    torch.testing.assert_close(carried(after)[1], torch.tensor(corners).double(), rtol=0, atol=ROUNDING)
    check(after, ROUNDING)
    assert after.original_size == tuple(after.image.shape[1:]) == size
    assert torch.equal(before.image, one().image)  # the sample given is left alone
    assert transform(none()).boxes.shape == (0, 4)


@pytest.mark.parametrize(("height", "width"), [(45, 32), (23, 64), (90, 128), (31, 47), (60, 64)])
def test_a_resize_leaves_the_fractions_and_the_original_size(height, width):
    before = one()
    after = resize(before, height, width)
    assert after.image.shape == (3, height, width)
    assert torch.equal(after.boxes, before.boxes)
    assert after.original_size == (HEIGHT, WIDTH)
    check(after, 0.5 + ROUNDING)  # a pixel is bright or not


def test_shrinking_averages_what_it_shrinks():
    stripes = (torch.arange(64) % 4 % 3 > 0).float()  # dark, bright, bright, dark: points between would see bright only
    sample = replace(none(), image=stripes.expand(3, 64, 64).contiguous())
    # Away from the border half of the weight is on bright pixels.
    inner = resize(sample, 16, 16).image[:, 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), rtol=0, atol=0.01)


def test_a_crop_keeps_a_box_of_which_enough_is_left():
    sample = one()  # columns 8 to 24
    assert len(crop(sample, 16, 0, 48, 45, 0.5).labels) == 1
    assert len(crop(sample, 17, 0, 47, 45, 0.5).labels) == 0
    assert len(crop(sample, 17, 0, 47, 45, 0.4).labels) == 1
    assert len(crop(sample, 30, 0, 34, 45, 0.01).labels) == 0


def test_a_crop_drops_a_box_too_thin_for_its_numbers():
    sample = replace(one(), boxes=torch.tensor([[1.0, 0.5, 1e-20, 0.5]]))  # its left and right are the same number
    assert len(crop(sample, 0, 0, WIDTH, HEIGHT, 0.5).labels) == 0


def test_a_crop_to_the_whole_keeps_whole_boxes_that_touch_the_border():
    corners = [(0, 0, 11, 7), (53, 37, 64, 45), (0, 0, 64, 45)]
    for keep in (0.5, 1.0):
        assert crop(draw(corners, [0, 1, 2]), 0, 0, WIDTH, HEIGHT, keep).labels.tolist() == [0, 1, 2]


def test_a_crop_of_a_picture_that_was_scaled_down_counts_original_pixels():
    sample = replace(one(), original_size=(450, 640))
    assert crop(sample, 0, 0, 32, 15, 0.5).original_size == (150, 320)
    assert turn(sample, 1).original_size == (640, 450)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(transform, sample, count=200):
    """Return what `transform` makes of `sample` when drawn `count` times."""
    chance = generator()
    return [transform(sample, chance) for _ in range(count)]


def test_a_random_crop_takes_shares_within_its_range_and_every_place():
    sample = none()
    parts = drawn(Crop((0.25, 0.5)), sample)
    heights, widths = ({part.image.shape[axis] for part in parts} for axis in (1, 2))
    assert (min(heights), max(heights)) == (11, 22)
    assert (min(widths), max(widths)) == (16, 32)
    ramp = torch.arange(WIDTH).float().div(WIDTH).expand(3, HEIGHT, WIDTH)
    lefts = {round(part.image[0, 0, 0].item() * WIDTH) for part in drawn(Crop((0.5, 0.5)), replace(sample, image=ramp))}
    assert lefts == set(range(33))


def test_a_random_crop_never_loses_the_last_box():
    sample = draw([(0, 0, 20, 16)], [0])
    parts = drawn(Crop((0.5, 0.5), keep=0.5), sample)
    assert all(len(part.labels) for part in parts)
    # A part shows enough of this box about once in 16 times: often ten of them find one, and often the picture is left.
    assert 50 < sum(part is sample for part in parts) < 150


def test_flips_and_turns_come_in_equal_shares():
    sample = one()
    for transform, count in ((HorizontalFlip(), 2), (VerticalFlip(), 2), (QuarterTurns(), 4)):
        boxes = [tuple(after.boxes[0].tolist()) for after in drawn(transform, sample, 400)]
        shares = [boxes.count(box) / len(boxes) for box in set(boxes)]
        assert len(shares) == count
        # Four standard deviations of a share in 400 draws are at most 4 sqrt(0.25 / 400) = 0.1.
        assert all(abs(share - 1 / count) < 0.1 for share in shares)


def test_a_random_resize_scales_both_sides_alike_up_to_the_largest_size():
    shapes = [after.image.shape for after in drawn(Resize((0.5, 1.5)), one())]
    assert min(shape[2] for shape in shapes) in (32, 33)
    assert max(shape[2] for shape in shapes) in (95, 96)
    for _, height, width in shapes:  # each side is rounded by itself
        assert abs(height - width * HEIGHT / WIDTH) <= 1
    assert {after.image.shape[2] for after in drawn(Resize((0.9, 1.5), max_size=50), one(), 50)} == {50}
    assert {after.image.shape[1] for after in drawn(Resize(max_size=32), turn(one(), 1), 5)} == {32}
    assert drawn(Resize(), one(), 1)[0].image.shape == (3, HEIGHT, WIDTH)


def colour(r, g, b):
    return torch.tensor([r, g, b]).view(3, 1, 1).expand(3, 4, 5).clone()


# Colours are computed in float32, with a matrix inverted.
CLOSE = {"rtol": 0, "atol": 2e-6}


def test_without_change_colours_stay():
    image = torch.rand(3, 5, 7, generator=generator())
    torch.testing.assert_close(change_colours(image), image, **CLOSE)


def test_brightness_scales_and_clips():
    torch.testing.assert_close(change_colours(colour(0.1, 0.4, 0.9), brightness=1.5), colour(0.15, 0.6, 1), **CLOSE)


def test_contrast_scales_the_distance_from_the_mean_luma():
    image = torch.rand(3, 5, 7, generator=generator()) * 0.2 + 0.4  # nothing is clipped
    mean = (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0).mean()
    torch.testing.assert_close(change_colours(image, contrast=0.5), mean + (image - mean) / 2, **CLOSE)
    expected = 1.2 * (mean + (image - mean) * 0.5)
    torch.testing.assert_close(change_colours(image, contrast=0.5, brightness=1.2), expected, **CLOSE)


def test_saturation_scales_the_distance_from_the_grey_of_the_same_luma():
    luma = 0.299 * 0.3 + 0.587 * 0.5 + 0.114 * 0.6
    expected = [luma + (value - luma) * 0.4 for value in (0.3, 0.5, 0.6)]
    torch.testing.assert_close(change_colours(colour(0.3, 0.5, 0.6), saturation=0.4), colour(*expected), **CLOSE)
    torch.testing.assert_close(change_colours(colour(0.3, 0.5, 0.6), saturation=0), colour(luma, luma, luma), **CLOSE)


@pytest.mark.parametrize("hue", [-0.5, -0.1, 0.25, 0.5])
def test_hue_leaves_greys_and_lumas_and_turns_back(hue):
    torch.testing.assert_close(change_colours(colour(0.4, 0.4, 0.4), hue=hue), colour(0.4, 0.4, 0.4), **CLOSE)
    image = torch.rand(3, 5, 7, generator=generator()) * 0.1 + 0.4  # nothing is clipped
    turned = change_colours(image, hue=hue)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close((turned * weights).sum(0), (image * weights).sum(0), **CLOSE)
    assert (turned - image).abs().max() > 0.01
    torch.testing.assert_close(change_colours(turned, hue=-hue), image, **CLOSE)


def test_a_third_of_the_circle_makes_red_another_colour():
    hues = [colorsys.rgb_to_hsv(*change_colours(colour(0.6, 0.4, 0.4), hue=hue)[:, 0, 0].tolist())[0]
            for hue in (1 / 3, -1 / 3)]  # fmt: skip
    # The circle of this space is not that of HSV, but red still becomes some green and some blue.
    assert all(0.2 < hue < 0.8 for hue in hues)
    assert abs(hues[0] - hues[1]) > 0.2


def test_colour_jitter_leaves_the_boxes_and_draws_within_its_ranges():
    sample = replace(one(), image=colour(0.4, 0.4, 0.4))
    values = [after.image[0, 0, 0].item() for after in drawn(ColourJitter(brightness=0.25), sample)]
    # A grey of 0.4 becomes 0.3 to 0.5, and in 200 draws comes near both ends.
    assert 0.3 <= min(values) < 0.31
    assert 0.49 < max(values) <= 0.5
    after = ColourJitter(0.2, 0.2, 0.2, 0.1)(one(), generator())
    assert torch.equal(after.boxes, one().boxes)
    assert not torch.equal(after.image, one().image)


def test_transforms_are_applied_one_after_the_other():
    sample = one()
    actual = Compose((QuarterTurns(), Crop((0.9, 0.9)), Resize((0.5, 0.5))))(sample, generator(3))
    chance = generator(3)
    expected = Resize((0.5, 0.5))(Crop((0.9, 0.9))(QuarterTurns()(sample, chance), chance), chance)
    assert torch.equal(actual.image, expected.image)
    assert torch.equal(actual.boxes, expected.boxes)


@st.composite
def samples(draw_from, smallest=6):
    """Draw a sample of up to three boxes of different labels, in any order, of at least `smallest` pixels a side."""
    height, width = draw_from(st.integers(24, 60)), draw_from(st.integers(24, 60))
    labels = draw_from(st.permutations([0, 1, 2]))[: draw_from(st.integers(0, 3))]
    corners = []
    for _ in labels:
        left = draw_from(st.integers(0, width - smallest))
        top = draw_from(st.integers(0, height - smallest))
        right = draw_from(st.integers(left + smallest, width))
        bottom = draw_from(st.integers(top + smallest, height))
        corners.append((left, top, right, bottom))
    return draw(corners, labels, height, width)


SHARES = st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)).map(sorted).map(tuple)
EXACT = st.one_of(
    st.sampled_from([HorizontalFlip(), VerticalFlip(), QuarterTurns()]), st.builds(Crop, SHARES, st.floats(0.1, 1))
)
SCALES = st.tuples(st.floats(0.3, 2), st.floats(0.3, 2)).map(sorted).map(tuple)
ANY = st.one_of(
    EXACT,
    st.builds(Resize, SCALES, st.none() | st.integers(8, 80)),
    st.builds(ColourJitter, *(st.floats(0, limit) for limit in (1, 1, 1, 0.5))),
)
SEEDS = st.integers(0, 2**31)


@PLENTY
@given(samples(), st.lists(EXACT, max_size=6), SEEDS)
def test_after_any_flips_turns_and_crops_each_box_is_what_is_seen_of_it(sample, transforms, seed):
    check(Compose(transforms)(sample, generator(seed)), ROUNDING)


@PLENTY
@given(samples(smallest=12), st.lists(EXACT, max_size=3), st.floats(0.6, 2), st.lists(EXACT, max_size=3), SEEDS)
def test_after_a_resize_among_them_too_to_half_a_pixel(sample, before, scale, after, seed):
    before = [replace(one, keep=0.9) if isinstance(one, Crop) else one for one in before]
    after = [replace(one, keep=0.9) if isinstance(one, Crop) else one for one in after]
    # Boxes stay large against a pixel, so that the edges of one do not blur into each other.
    check(Compose((*before, Resize((scale, scale)), *after))(sample, generator(seed)), 0.5 + ROUNDING)


@PLENTY
@given(samples(), st.lists(ANY, max_size=8), SEEDS)
def test_any_composition_keeps_boxes_inside_the_picture_with_labels_that_were_there(sample, transforms, seed):
    after = Compose(transforms)(sample, generator(seed))
    corners = cxcywh_to_xyxy(after.boxes.double())
    assert ((corners > -1e-6) & (corners < 1 + 1e-6)).all()  # a rounding of float32 for each transform
    assert (after.boxes[:, 2:] > 0).all()
    assert len(after.boxes) == len(after.labels)
    assert set(after.labels.tolist()) <= set(sample.labels.tolist())
    assert bool(len(after.labels)) == bool(len(sample.labels))
    assert after.image.min() >= 0
    assert after.image.max() <= 1
    assert after.image.is_contiguous()
    assert min(after.original_size) >= 1


@PLENTY
@given(samples(), st.sampled_from([(flip_horizontally, 2), (flip_vertically, 2), (lambda s: turn(s, 1), 4)]))
def test_two_flips_and_four_turns_change_nothing(sample, transform_and_times):
    transform, times = transform_and_times
    after = sample
    for _ in range(times):
        after = transform(after)
    assert torch.equal(after.image, sample.image)
    torch.testing.assert_close(after.boxes, sample.boxes, rtol=0, atol=1e-7)  # 1 - x rounds by up to 2**-25 = 3e-8
    assert torch.equal(after.labels, sample.labels)
    assert after.original_size == sample.original_size


@PLENTY
@given(samples(), st.lists(EXACT, max_size=4), SEEDS)
def test_in_pixels_of_the_original_size_boxes_are_what_is_seen(sample, transforms, seed):
    after = Compose(transforms)(sample, generator(seed))
    truth = coco_from_samples([after], [Category(i, str(i)) for i in range(3)])
    for annotation in truth["annotations"]:
        left, top, right, bottom = seen(after, annotation["category_id"]).tolist()
        assert annotation["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=ROUNDING)
