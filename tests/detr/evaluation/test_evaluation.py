"""Evaluation: average precision of cases small enough to know the answer."""

import copy
import math

import pytest
import torch

from deform_attn.detr.data.base import Category
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.evaluation.metrics import counted_detections, evaluate, format_metrics
from deform_attn.detr.model.detections import Detections

NAMES = ["AP", "AP50", "AP75", "AR100", "AP<16", "AP<32", "AP32-96", "AP>96"]


def truth(*boxes, categories=(1,)):
    """Return a COCO dict of (image_id, category_id, bbox), whose annotation ids start with the difficult 0."""
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (image, category, box) in enumerate(boxes)
    ]
    return {
        "images": [{"id": image} for image in range(4)],
        "annotations": annotations,
        "categories": [{"id": category, "name": str(category)} for category in categories],
    }


def found(image, category, box, score=0.9):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


BOX, OTHER = [10, 10, 20, 20], [60, 60, 20, 20]


def test_perfect_detections_have_every_metric_one():
    boxes = [[5, 5, 10, 10], [30, 30, 25, 25], [60, 60, 50, 50], [120, 120, 200, 200]]
    metrics = evaluate(
        truth(*((i, 1, box) for i, box in enumerate(boxes))), [found(i, 1, box) for i, box in enumerate(boxes)]
    )
    assert list(metrics) == NAMES
    assert list(metrics.values()) == pytest.approx([1.0] * len(NAMES))


@pytest.mark.parametrize(("objects", "counted"), [(99, 100), (100, 100), (101, 101), (200, 200)])
def test_a_perfect_detector_of_many_objects_has_every_metric_one(objects, counted):
    boxes = [[12 * (i % 20), 12 * (i // 20), 10, 10] for i in range(objects)]
    metrics = evaluate(
        truth(*((0, 1, box) for box in boxes), (1, 1, BOX)), [found(0, 1, box) for box in boxes] + [found(1, 1, BOX)]
    )
    assert metrics[f"AR{counted}"] == metrics["AP"] == metrics["AP<16"] == pytest.approx(1)
    assert len(metrics) == len(NAMES)


def test_crowds_and_other_pictures_do_not_change_how_many_detections_count():
    crowds = truth(*[(0, 1, BOX)] * 80, *[(1, 1, BOX)] * 80, *[(0, 1, BOX)] * 80)
    assert counted_detections(truth(*[(0, 1, BOX)] * 80, *[(1, 1, BOX)] * 80)) == 100
    assert counted_detections(crowds) == 160
    for annotation in crowds["annotations"][160:]:
        annotation["iscrowd"] = 1
    assert counted_detections(crowds) == 100
    assert counted_detections(truth()) == 100


def test_half_the_boxes_found_give_half_the_recall():
    metrics = evaluate(truth((0, 1, BOX), (1, 1, BOX)), [found(0, 1, BOX)])
    assert metrics["AR100"] == pytest.approx(0.5)
    # Precision is read at the recalls 0.00, 0.01, ..., 1.00, of which 51 of 101 are reached.
    assert metrics["AP"] == pytest.approx(51 / 101)


def test_the_wrong_category_counts_for_nothing():
    metrics = evaluate(truth((0, 1, BOX), categories=(1, 2)), [found(0, 2, BOX)])
    assert metrics["AP"] == metrics["AR100"] == 0.0


def test_a_false_alarm_above_the_hit_halves_precision_and_one_below_costs_nothing():
    hit = found(0, 1, BOX, 0.5)
    assert evaluate(truth((0, 1, BOX)), [hit, found(0, 1, OTHER, 0.9)])["AP"] == pytest.approx(0.5)
    assert evaluate(truth((0, 1, BOX)), [hit, found(0, 1, OTHER, 0.1)])["AP"] == pytest.approx(1.0)


def test_a_box_counts_at_the_thresholds_that_its_iou_reaches():
    metrics = evaluate(truth((0, 1, [0, 0, 10, 10])), [found(0, 1, [0, 0, 10, 7.2])])
    assert metrics["AP"] == pytest.approx(0.5)  # 0.50, 0.55, 0.60, 0.65, 0.70 of ten
    assert metrics["AP50"] == pytest.approx(1.0)
    assert metrics["AP75"] == 0.0


def test_sizes_are_told_apart_by_area_and_missing_ones_are_nan():
    metrics = evaluate(truth((0, 1, [5, 5, 15, 15]), (1, 1, [5, 5, 30, 30])), [found(0, 1, [5, 5, 15, 15])])
    assert metrics["AP<16"] == pytest.approx(1.0)
    assert metrics["AP<32"] == pytest.approx(51 / 101)
    assert math.isnan(metrics["AP32-96"])
    assert math.isnan(metrics["AP>96"])


def test_no_detections_at_all_give_zero():
    metrics = evaluate(truth((0, 1, BOX)), [])
    assert [metrics[name] for name in ("AP", "AP50", "AP75", "AR100", "AP<32")] == [0.0] * 5


def test_nothing_to_find_gives_nan():
    assert all(math.isnan(value) for value in evaluate(truth(), [found(0, 1, BOX)]).values())


def test_a_crowd_is_neither_to_be_found_nor_wrong_to_detect():
    ground_truth = truth((0, 1, BOX), (0, 1, [50, 50, 50, 50]))
    ground_truth["annotations"][1]["iscrowd"] = 1
    assert evaluate(ground_truth, [found(0, 1, BOX, 0.5), found(0, 1, OTHER, 0.9)])["AP"] == pytest.approx(1.0)


def test_the_arguments_are_left_as_they_were():
    ground_truth, detections = truth((0, 1, BOX)), [found(0, 1, BOX)]
    expected = copy.deepcopy((ground_truth, detections))
    evaluate(ground_truth, detections)
    assert (ground_truth, detections) == expected


def test_evaluation_is_silent(capfd):
    evaluate(truth((0, 1, BOX)), [found(0, 1, BOX)])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("image", "category", "field"), [(9, 1, "image_id 9"), (0, 7, "category_id 7")])
def test_a_detection_of_something_unknown_is_refused(image, category, field):
    with pytest.raises(ValueError, match=field):
        evaluate(truth((0, 1, BOX)), [found(image, category, BOX)])


def test_the_truth_of_a_data_set_as_detections_is_perfect():
    scenes = DigitScenes("val", 6)
    detections = [
        record
        for sample in scenes
        for record in Detections.of_sample(sample).to_coco(sample.image_id, scenes.categories)
    ]
    metrics = evaluate(scenes.ground_truth(), detections)
    assert metrics["AP"] == pytest.approx(1.0)


def test_detections_name_the_category_of_their_label():
    one = Detections(torch.tensor([[1.0, 2.0, 4.0, 7.0]]), torch.tensor([0.5]), torch.tensor([1]))
    expected = {"image_id": 3, "category_id": 40, "bbox": [1.0, 2.0, 3.0, 5.0], "score": 0.5}
    assert one.to_coco(3, (Category(30, "a"), Category(40, "b"))) == [expected]


def test_detections_of_unequal_length_are_refused():
    with pytest.raises(
        ValueError, match=r"boxes \[k, 4\], scores \[k\] and labels \[k\], got \[2, 4\], \[1\] and \[2\]"
    ):
        Detections(torch.zeros(2, 4), torch.zeros(1), torch.zeros(2, dtype=torch.int64))


def test_the_table_is_aligned_and_shows_what_is_missing_as_a_dash():
    lines = format_metrics({"AP": 0.5, "AP32-96": 0.25, "AP>96": math.nan}).split("\n")
    assert lines == ["   AP  AP32-96  AP>96", "0.500    0.250      -"]


def test_the_table_says_how_many_detections_count_if_it_is_not_coco_s_number():
    assert format_metrics({"AP": 0.5, "AR100": 0.25}).count("\n") == 1
    note = format_metrics({"AP": 0.5, "AR250": 0.25}).split("\n")[2]
    assert note == "up to 250 detections per image count, since COCO's 100 are fewer than the objects"
