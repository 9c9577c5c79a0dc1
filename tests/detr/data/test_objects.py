"""What a data set shows: nothing at all is an error, and what cannot be learnt or validated is said."""

import pytest

from deform_attn.detr.data.objects import remarks_on, require_objects, shown_in
from deform_attn.detr.errors import DataError


def truth(*objects, names=("cat", "bird"), images=3):
    """Return a COCO dict of (image, category, iscrowd), whose categories count from 1."""
    fields = ("image_id", "category_id", "iscrowd")
    return {
        "images": [{"id": i} for i in range(images)],
        "annotations": [dict(zip(fields, one, strict=True)) for one in objects],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }


def remarks(train, validation=None, queries=30):
    shown = validation and shown_in(validation)
    return remarks_on(shown_in(train), shown, queries, "train with {} of them")


BOTH = [(0, 1, 0), (1, 2, 0)]


def test_objects_are_counted_by_picture_and_category_without_crowds():
    shown = shown_in(truth((0, 1, 0), (0, 1, 0), (0, 2, 1), (2, 1, 1)))
    assert (shown.pictures, shown.categories, shown.crowds) == ({0: 2, 1: 0, 2: 0}, {1: 2, 2: 0}, {1: 1, 2: 1})


def test_of_data_in_which_all_can_be_learnt_nothing_is_said():
    assert remarks(truth(*BOTH), truth(*BOTH)) == []
    assert remarks(truth(*BOTH), None, queries=1) == []


def test_pictures_with_more_objects_than_queries_are_counted_with_the_largest():
    train = truth(*[(0, 1, 0)] * 200, *[(1, 2, 0)] * 31, *[(2, 1, 0)] * 30)
    assert remarks(train, truth(*BOTH)) == [
        "2 of 3 training images have more objects than the detector has queries (30), up to 200; it cannot find all of "
        "them: train with 200 of them"
    ]
    (line,) = remarks(truth(*BOTH), train)
    assert line.startswith("2 of 3 validation images have more objects than the detector has queries (30), up to 200; ")


def test_crowds_take_no_queries():
    assert remarks(truth(*BOTH, *[(0, 1, 1)] * 200)) == []


def test_a_category_that_nothing_is_learnt_of_is_named():
    (line,) = remarks(truth((0, 2, 0)))
    assert line.startswith("no training image has an object of 'cat', so the detector does not learn them; ")
    (line,) = remarks(truth((0, 1, 0), names=[f"c{i}" for i in range(11)]))
    assert "an object of 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7', 'c8' and 2 more, so" in line


def test_a_category_that_shares_its_name_is_named_with_its_id():
    (line,) = remarks(truth((0, 2, 0), names=("cat", "cat")))
    assert "'cat' (id 1), so the detector does not learn" in line


def test_a_category_with_nothing_but_crowds_is_named_with_this_cause():
    (line,) = remarks(truth((0, 1, 0), (0, 2, 1)))
    assert line.startswith("all training annotations of 'bird' have iscrowd = 1, so the detector does not learn them; ")


def test_a_category_that_only_the_validation_lacks_is_named():
    assert remarks(truth(*BOTH), truth((0, 1, 0), (1, 2, 1))) == [
        "no validation image has an object of 'bird'; no metric includes them"
    ]
    (line,) = remarks(truth((0, 1, 0)), truth((0, 1, 0)))  # the training says it already
    assert line.startswith("no training image")


class Data:
    """A data set that is nothing but its ground truth."""

    def __init__(self, ground_truth):
        self._truth = ground_truth

    def __len__(self):
        return len(self._truth["images"])

    def ground_truth(self):
        return self._truth


def test_data_without_any_object_are_refused():
    assert require_objects(Data(truth(*BOTH)), "trees", "").categories == {1: 1, 2: 1}
    for nothing in (truth(), truth((0, 1, 1))):
        with pytest.raises(DataError) as caught:
            require_objects(Data(nothing), "trees", "hold out less")
        assert str(caught.value) == "trees: none of the 3 images has an object to find; hold out less"
