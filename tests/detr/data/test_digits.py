"""Digit scenes: what is in them, and that the splits share nothing."""

import numpy as np
import pytest
import sklearn.datasets
import torch

from deform_attn.detr.boxes import cxcywh_to_xyxy
from deform_attn.detr.data import digits
from deform_attn.detr.data.digits import DigitScenes, digit_numbers, photograph_columns

SPLITS = ("train", "val", "test")


def pixel_corners(sample):
    return (cxcywh_to_xyxy(sample.boxes) * sample.image.shape[-1]).round().long().tolist()


def images_of(split, length=12, **options):
    scenes = DigitScenes(split, length, **options)
    return torch.stack([scenes[i].image for i in range(length)])


@pytest.fixture
def fresh_sources():
    """Let a test swap what scikit-learn ships, without a trace in the cached parts."""
    digits._inks.cache_clear()
    digits._photographs.cache_clear()
    yield
    digits._inks.cache_clear()
    digits._photographs.cache_clear()


def test_every_digit_belongs_to_exactly_one_split():
    numbers = [number for split in SPLITS for number in digit_numbers(split)]
    assert sorted(numbers) == list(range(1797))


def test_every_split_has_all_ten_digits():
    target = sklearn.datasets.load_digits().target
    for split in SPLITS:
        assert np.bincount(target[digit_numbers(split)], minlength=10).min() >= 10


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.usefixtures("fresh_sources")
def test_no_digit_and_no_region_of_another_split_appears(split, monkeypatch):
    expected = images_of(split)
    bunch, photographs = sklearn.datasets.load_digits(), sklearn.datasets.load_sample_images()
    others = [number for other in SPLITS if other != split for number in digit_numbers(other)]
    bunch.images[others] = 16 - bunch.images[others]
    first, end = photograph_columns(split, photographs.images[0].shape[1])
    for i, pixels in enumerate(photographs.images):
        photographs.images[i] = 255 - pixels
        photographs.images[i][:, first:end] = pixels[:, first:end]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: photographs)
    digits._inks.cache_clear()
    digits._photographs.cache_clear()

    assert torch.equal(images_of(split), expected)
    other = SPLITS[SPLITS.index(split) - 1]
    changed = images_of(other)
    monkeypatch.undo()
    digits._inks.cache_clear()
    digits._photographs.cache_clear()
    assert not torch.equal(images_of(other), changed)  # else the swap would have changed nothing anywhere


def test_a_scene_depends_on_seed_epoch_and_index_alone():
    scenes, again = DigitScenes("train", 50, seed=3), DigitScenes("train", 2000, seed=3)
    scenes.set_epoch(4)
    again.set_epoch(1)
    assert again[7].image.shape == (3, 160, 160)
    again.set_epoch(4)
    assert torch.equal(scenes[7].image, again[7].image)
    assert torch.equal(scenes[7].boxes, again[7].boxes)
    assert torch.equal(scenes[7].labels, again[7].labels)


def test_training_scenes_differ_between_epochs_seeds_and_indices():
    scenes = DigitScenes("train", 4)
    first = scenes[0].image
    assert not torch.equal(first, scenes[1].image)
    assert not torch.equal(first, DigitScenes("train", 4, seed=1)[0].image)
    scenes.set_epoch(1)
    assert not torch.equal(first, scenes[0].image)


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_scenes_are_the_same_in_every_epoch_and_for_every_seed(split):
    scenes, expected = DigitScenes(split, 3, seed=5), DigitScenes(split, 9)
    scenes.set_epoch(8)
    for i in range(3):
        assert torch.equal(scenes[i].image, expected[i].image)


def test_scenes_hold_one_to_eight_digits_of_8_to_40_pixels():
    scenes = DigitScenes("train", 150)
    samples = [scenes[i] for i in range(150)]
    assert {len(sample.labels) for sample in samples} == set(range(1, 9))
    longer = torch.cat([sample.boxes[:, 2:].amax(1) for sample in samples]) * 160
    assert (longer.round().min(), longer.round().max()) == (8, 40)
    torch.testing.assert_close(longer, longer.round(), rtol=0, atol=1e-3)
    assert set(torch.cat([sample.labels for sample in samples]).tolist()) == set(range(10))


@pytest.mark.parametrize("size", [160, 64])
def test_samples_are_what_a_sample_promises(size):
    scenes = DigitScenes("val", 20, size=size)
    for i in range(20):
        sample = scenes[i]
        assert sample.image.shape == (3, size, size)
        assert (sample.image.dtype, sample.boxes.dtype, sample.labels.dtype) == (
            torch.float32,
            torch.float32,
            torch.int64,
        )
        assert 0 <= sample.image.min() < sample.image.max() <= 1
        assert sample.boxes.shape == (len(sample.labels), 4)
        corners = cxcywh_to_xyxy(sample.boxes)
        assert corners.min() >= -1e-6
        assert corners.max() <= 1 + 1e-6
        assert (sample.image_id, sample.original_size) == (i, (size, size))


def test_digits_hardly_overlap():
    scenes = DigitScenes("train", 80)
    for i in range(80):
        boxes = pixel_corners(scenes[i])
        canvas = np.zeros((160, 160), dtype=int)
        for left, top, right, bottom in boxes:
            covered = canvas[top:bottom, left:right].sum()
            assert covered <= 0.05 * 7 * (right - left) * (bottom - top)
            canvas[top:bottom, left:right] = 1


def test_no_ink_lies_outside_the_boxes():
    scenes = DigitScenes("test", 60)
    for i in range(60):
        bright = (scenes[i].image.amin(0) > 0.6).numpy()  # brighter than any background
        assert bright.any()
        for left, top, right, bottom in pixel_corners(scenes[i]):
            bright[top:bottom, left:right] = False
        assert not bright.any()


@pytest.mark.parametrize("size", [8, 21, 40])
def test_visible_ink_reaches_every_side_of_its_box(size):
    reach = 1 + size // 10
    strongest = []
    for _, ink in digits._inks("test"):
        opacity = np.asarray(digits._resize(ink, size)) / 255
        assert max(opacity.shape) == size
        sides = (opacity[:reach], opacity[-reach:], opacity[:, :reach], opacity[:, -reach:])
        strongest += [side.max() for side in sides]
    assert np.mean(np.array(strongest) > 0.25) > 0.995  # the tips of a few faint strokes are fainter


def test_ground_truth_holds_the_boxes_of_the_samples_in_pixels():
    scenes = DigitScenes("test", 5)
    truth = scenes.ground_truth()
    assert [image["id"] for image in truth["images"]] == [0, 1, 2, 3, 4]
    assert truth["categories"] == [{"id": digit, "name": str(digit)} for digit in range(10)]
    for i in range(5):
        annotations = [annotation for annotation in truth["annotations"] if annotation["image_id"] == i]
        assert [annotation["category_id"] for annotation in annotations] == scenes[i].labels.tolist()
        for annotation, (left, top, right, bottom) in zip(annotations, pixel_corners(scenes[i]), strict=True):
            assert annotation["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)
            assert annotation["area"] == pytest.approx((right - left) * (bottom - top), abs=0.1)
            assert annotation["iscrowd"] == 0
    ids = [annotation["id"] for annotation in truth["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_iteration_ends_with_the_last_scene():
    assert len(list(DigitScenes("val", 3))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev", "length": 1}, "split: expected one of train, val, test, got 'dev'"),
        ({"split": "val", "length": 0}, "length >= 1"),
        ({"split": "val", "length": 1, "seed": -1}, "seed -1"),
        ({"split": "train", "length": 1, "seed": 2**31}, "seed 2147483648"),
        ({"split": "val", "length": 1, "size": 32}, "size: expected at least 48"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitScenes(**arguments)
