import math

import pytest
import torch

from deform_attn.detr.config.detector import LossConfig
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.model.deformable_detr import Output
from deform_attn.detr.model.heads import Prediction
from deform_attn.detr.training.criterion import Criterion


def sample(boxes: list[list[float]], labels: list[int]) -> Sample:
    return Sample(
        torch.zeros(3, 8, 9), torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), 0, (8, 9)
    )


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5)])
def test_the_class_loss_is_the_focal_loss(alpha: float, gamma: float) -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0], [-4.0, 0.0, 5.0]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    by_hand = 0.0
    for logit, truth in zip(logits.flatten().tolist(), expected.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        by_hand += -alpha * (1 - p) ** gamma * math.log(p) if truth else -(1 - alpha) * p**gamma * math.log(1 - p)
    actual = Criterion(LossConfig(alpha=alpha, gamma=gamma)).class_loss(logits, expected)
    assert actual.item() == pytest.approx(by_hand, rel=1e-5)


def test_the_box_loss_is_the_sum_of_distances() -> None:
    boxes, expected = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.3, 0.4]]), torch.zeros(2, 4)
    assert Criterion(LossConfig()).box_loss(boxes, expected).item() == pytest.approx(2.6)


def test_the_giou_loss_is_zero_for_equal_boxes_and_two_for_boxes_far_apart() -> None:
    criterion = Criterion(LossConfig())
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    assert criterion.giou_loss(boxes, boxes).item() == pytest.approx(0, abs=1e-6)
    assert criterion.giou_loss(boxes, boxes + torch.tensor([1e4, 0, 0, 0])).item() == pytest.approx(2, abs=1e-3)
    # Side by side and touching: no overlap, and nothing of the enclosing box is left over.
    assert criterion.giou_loss(boxes, boxes + torch.tensor([0.2, 0, 0, 0])).item() == pytest.approx(1, abs=1e-6)


def test_every_layer_counts_and_the_sum_is_divided_by_the_number_of_boxes() -> None:
    torch.manual_seed(0)
    samples = [sample([[0.3, 0.4, 0.2, 0.1], [0.7, 0.6, 0.2, 0.3]], [0, 2]), sample([[0.5, 0.5, 0.4, 0.4]], [1])]
    layers = [Prediction(torch.randn(2, 4, 3), torch.rand(2, 4, 4) * 0.5 + 0.2) for _ in range(3)]
    config = LossConfig(class_weight=1.1, box_weight=2.2, giou_weight=3.3)
    criterion = Criterion(config)
    together = criterion(Output(*layers[0], (layers[1],), layers[2]), samples)
    alone = [criterion(Output(*layer, (), None), samples) for layer in layers]
    for actual, *expected in zip(together, *alone, strict=True):
        torch.testing.assert_close(actual, torch.stack(expected).sum())
    weighted = 1.1 * together.classes + 2.2 * together.boxes + 3.3 * together.giou
    torch.testing.assert_close(together.total, weighted)
    halves = [
        criterion(Output(layers[0].logits[i : i + 1], layers[0].boxes[i : i + 1], (), None), samples[i : i + 1])
        for i in range(2)
    ]
    torch.testing.assert_close(alone[0].total, (2 * halves[0].total + halves[1].total) / 3)


def test_pictures_without_objects_give_finite_losses_and_gradients() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    boxes = torch.rand(2, 4, 4, requires_grad=True)
    losses = Criterion(LossConfig())(Output(logits, boxes, (), None), [sample([], []), sample([], [])])
    losses.total.backward()
    assert losses.boxes == losses.giou == 0
    assert 0 < losses.classes < math.inf
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()
