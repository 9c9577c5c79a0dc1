import itertools
import math

import pytest
import torch
from torch import Tensor

from deform_attn.detr.config.detector import LossConfig
from deform_attn.detr.model.heads import Prediction
from deform_attn.detr.training.matcher import Matcher, pad_targets


def random_boxes(*shape: int) -> Tensor:
    return torch.cat((torch.rand(*shape, 2) * 0.6 + 0.2, torch.rand(*shape, 2) * 0.3 + 0.05), dim=-1)


def giou_by_hand(first: list[float], second: list[float]) -> float:
    corners = [(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in (first, second)]
    (l1, t1, r1, b1), (l2, t2, r2, b2) = corners
    shared = max(0.0, min(r1, r2) - max(l1, l2)) * max(0.0, min(b1, b2) - max(t1, t2))
    union = (r1 - l1) * (b1 - t1) + (r2 - l2) * (b2 - t2) - shared
    around = (max(r1, r2) - min(l1, l2)) * (max(b1, b2) - min(t1, t2))
    return shared / union - (around - union) / around


def cost_by_hand(config: LossConfig, logits: list[float], box: list[float], label: int, wanted: list[float]) -> float:
    p = 1 / (1 + math.exp(-logits[label]))
    present = config.alpha * (1 - p) ** config.gamma * -math.log(p)
    absent = (1 - config.alpha) * p**config.gamma * -math.log(1 - p)
    distance = sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
    return (
        config.class_weight * (present - absent)
        + config.box_weight * distance
        - config.giou_weight * giou_by_hand(box, wanted)
    )


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_the_cheapest_of_all_assignments(seed: int) -> None:
    torch.manual_seed(seed)
    G, N, Q, K, counts = 2, 3, 5, 4, [3, 0, 2]
    config = LossConfig(class_weight=1.5, box_weight=3, giou_weight=2.5)
    prediction = Prediction(torch.randn(G, N, Q, K), random_boxes(G, N, Q))
    labels, boxes = [torch.randint(K, (n,)) for n in counts], [random_boxes(n) for n in counts]
    matches = Matcher(config)(prediction, pad_targets(labels, boxes, torch.device("cpu")))
    pairs = list(zip(*(index.tolist() for index in matches), strict=True))
    assert len(pairs) == G * sum(counts)
    for g, i in itertools.product(range(G), range(N)):
        logits, found = prediction.logits[g, i].tolist(), prediction.boxes[g, i].tolist()
        truth, wanted = labels[i].tolist(), boxes[i].tolist()

        def total(
            queries: tuple[int, ...],
            logits: list[list[float]] = logits,
            found: list[list[float]] = found,
            truth: list[int] = truth,
            wanted: list[list[float]] = wanted,
        ) -> float:
            return sum(cost_by_hand(config, logits[q], found[q], truth[t], wanted[t]) for t, q in enumerate(queries))

        cheapest = min(itertools.permutations(range(Q), counts[i]), key=total)
        actual = {t: q for layer, picture, q, t in pairs if (layer, picture) == (g, i)}
        assert tuple(actual[t] for t in range(counts[i])) == cheapest


def test_more_objects_than_queries_leaves_the_worst_unmatched() -> None:
    logits, boxes = torch.zeros(1, 1, 2, 1), torch.tensor([[[[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]]])
    wanted = torch.tensor([[0.21, 0.2, 0.1, 0.1], [0.5, 0.5, 0.3, 0.1], [0.8, 0.79, 0.1, 0.1]])
    targets = pad_targets([torch.zeros(3, dtype=torch.int64)], [wanted], torch.device("cpu"))
    matches = Matcher(LossConfig())(Prediction(logits, boxes), targets)
    assert sorted(zip(matches.query.tolist(), matches.target.tolist(), strict=True)) == [(0, 0), (1, 2)]


def test_a_prediction_that_is_not_finite_is_refused() -> None:
    prediction = Prediction(torch.full((1, 1, 2, 3), math.nan), random_boxes(1, 1, 2))
    targets = pad_targets([torch.tensor([1])], [random_boxes(1)], torch.device("cpu"))
    with pytest.raises(ValueError, match="not finite"):
        Matcher(LossConfig())(prediction, targets)
