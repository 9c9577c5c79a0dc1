"""Boxes: conversions and overlaps against hand numbers and scalar loops."""

import pytest
import torch

from deform_attn.detr.boxes import area, cxcywh_to_xyxy, generalized_iou, iou, xyxy_to_cxcywh


def scalar_overlaps(first: list[float], second: list[float]) -> tuple[float, float]:
    """Return IoU and generalised IoU of two corner-form boxes, one number at a time."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    first_area = (first[2] - first[0]) * (first[3] - first[1])
    union = first_area + (second[2] - second[0]) * (second[3] - second[1]) - width * height
    hull = (max(first[2], second[2]) - min(first[0], second[0])) * (max(first[3], second[3]) - min(first[1], second[1]))
    return width * height / union, width * height / union - (hull - union) / hull


def random_boxes(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return torch.cat((low, low + 0.05 + torch.rand(*shape, 2, generator=generator, dtype=torch.float64)), dim=-1)


def test_centre_form_and_corners_are_those_of_the_hand_example():
    centre, corners = torch.tensor([[5.0, 7.0, 4.0, 6.0]]), torch.tensor([[3.0, 4.0, 7.0, 10.0]])
    assert torch.equal(cxcywh_to_xyxy(centre), corners)
    assert torch.equal(xyxy_to_cxcywh(corners), centre)


def test_conversions_undo_each_other_on_any_leading_shape():
    boxes = random_boxes(2, 3, 5, seed=0)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_the_area_of_a_box_turned_inside_out_is_zero():
    boxes = torch.tensor([[1.0, 2.0, 4.0, 7.0], [4.0, 2.0, 1.0, 7.0], [4.0, 7.0, 1.0, 2.0]])
    assert area(boxes).tolist() == [15.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("second", "expected_iou", "expected_giou"),
    [
        ([0.0, 0.0, 4.0, 4.0], 1.0, 1.0),  # the same box
        ([2.0, 0.0, 6.0, 4.0], 1 / 3, 1 / 3),  # shifted along one axis: the hull is the union
        ([2.0, 2.0, 6.0, 6.0], 4 / 28, 4 / 28 - 8 / 36),
        ([4.0, 0.0, 8.0, 4.0], 0.0, 0.0),  # touching
        ([8.0, 0.0, 12.0, 4.0], 0.0, -1 / 3),  # apart by a box's width
        ([1.0, 1.0, 3.0, 3.0], 0.25, 0.25),  # inside
    ],
)
def test_overlaps_are_those_computed_by_hand(second, expected_iou, expected_giou):
    first, second = torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor(second)
    assert iou(first, second).item() == pytest.approx(expected_iou)
    assert generalized_iou(first, second).item() == pytest.approx(expected_giou)


def test_overlaps_of_all_pairs_equal_the_scalar_loop():
    first, second = random_boxes(5, seed=1), random_boxes(7, seed=2)
    expected = torch.tensor([[scalar_overlaps(a, b) for b in second.tolist()] for a in first.tolist()])
    torch.testing.assert_close(iou(first[:, None], second), expected[..., 0].double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(generalized_iou(first[:, None], second), expected[..., 1].double(), rtol=1e-6, atol=1e-6)


def test_gradients_of_generalized_iou_are_those_of_finite_differences():
    first, second = random_boxes(6, seed=3).requires_grad_(), random_boxes(6, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(generalized_iou, (first, second))


def test_boxes_without_extent_have_finite_overlaps_and_gradients():
    boxes = torch.zeros(3, 4, requires_grad=True)
    overlaps = iou(boxes, boxes) + generalized_iou(boxes, boxes)
    overlaps.sum().backward()
    assert overlaps.isfinite().all()
    assert boxes.grad.isfinite().all()
