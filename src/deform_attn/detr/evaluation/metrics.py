"""Evaluation: COCO's average precision and recall of detections, by pycocotools."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deform_attn.detr.extra import detr_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Boxes by area in square pixels, from and to. COCO calls the ranges below 32², up to 96² and above small, medium and
# large; where most objects are small, those below 16² tell more.
_AREAS = {
    "AP": (0.0, 1e10),
    "AP<16": (0.0, 16.0**2),
    "AP<32": (0.0, 32.0**2),
    "AP32-96": (32.0**2, 96.0**2),
    "AP>96": (96.0**2, 1e10),
}
_FEWEST_COUNTED = 100  # detections of a picture at the least, as COCO counts them


def counted_detections(ground_truth: Mapping[str, Any]) -> int:
    """Return how many detections of each picture count, those with the highest scores.

    COCO's 100 or, where a picture of the COCO dict `ground_truth` has more objects, as many as it has.
    """
    objects = Counter(one["image_id"] for one in ground_truth["annotations"] if not one.get("iscrowd"))
    return max(_FEWEST_COUNTED, *objects.values(), 0)


def evaluate(ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return COCO's metrics for boxes, each in [0, 1], or nan where the ground truth has no box to find.

    `AP` is the average precision, averaged over the categories and the IoU thresholds 0.50, 0.55, ..., 0.95. `AP50`
    and `AP75` have one threshold. `AR100` is the recall of the 100 best detections per image. If an image has more
    objects, say 250, that many detections count, and the name is `AR250`. `AP<16`, `AP<32`, `AP32-96` and `AP>96` count
    boxes by area, between the squares of these pixels. Crowds need not be found, and detections in them are not wrong.

    Args:
        ground_truth: a COCO dict with `images`, `annotations` and `categories`, such as a dataset's `ground_truth()`.
        detections: COCO result records `image_id`, `category_id`, `bbox` (x, y, width, height in pixels) and `score`.
            The list may be empty.

    Raises:
        ValueError: the image or category of a detection is not in the ground truth.

    Example:
        >>> truth = {"id": 1, "image_id": 0, "category_id": 7, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0}
        >>> ground_truth = {"images": [{"id": 0}], "annotations": [truth], "categories": [{"id": 7, "name": "seven"}]}
        >>> found = {"image_id": 0, "category_id": 7, "bbox": [5, 5, 10, 8], "score": 0.9}
        >>> round(evaluate(ground_truth, [found])["AP"], 3)
        0.7
    """
    with detr_extra():
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    for field, table in (("image_id", "images"), ("category_id", "categories")):
        unknown = {detection[field] for detection in detections} - {record["id"] for record in ground_truth[table]}
        if unknown:
            raise ValueError(
                f"detections: {field} {min(unknown)} is not among the {table} of the ground truth; "
                "evaluate against the dataset that the detections were made on"
            )

    counted = counted_detections(ground_truth)
    shared = {"images": ground_truth["images"], "categories": ground_truth["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth, found = COCO(), COCO()
        # Copies, because pycocotools writes into the records; ids from 1, because it takes id 0 for "no match".
        truth.dataset = shared | {
            "annotations": [
                {"iscrowd": 0, **record, "id": i} for i, record in enumerate(ground_truth["annotations"], 1)
            ]
        }
        found.dataset = shared | {
            "annotations": [
                {**record, "id": i, "area": record["bbox"][2] * record["bbox"][3], "iscrowd": 0}
                for i, record in enumerate(detections, 1)
            ]
        }
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, iouType="bbox")
        evaluation.params.areaRng = [list(area) for area in _AREAS.values()]
        evaluation.params.areaRngLbl = list(_AREAS)
        evaluation.params.maxDets = [counted]
        evaluation.evaluate()
        evaluation.accumulate()

    precision = evaluation.eval["precision"][..., 0]  # [IoU thresholds, recalls, categories, areas]
    recall = evaluation.eval["recall"][..., 0]  # [IoU thresholds, categories, areas]
    by_area = {name: _mean(precision[..., i]) for i, name in enumerate(_AREAS)}
    return {
        "AP": by_area.pop("AP"),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
        f"AR{counted}": _mean(recall[..., 0]),
        **by_area,
    }


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return `metrics` as two aligned lines, names above values; a dash for nan.

    A third line says how many detections of a picture count, if it is not COCO's 100.

    Example:
        >>> print(format_metrics({"AP": 0.67, "AP50": 0.921, "AP>96": float("nan")}))
           AP   AP50  AP>96
        0.670  0.921      -
    """
    values = ["-" if math.isnan(value) else f"{value:.3f}" for value in metrics.values()]
    widths = [max(len(name), 5) for name in metrics]
    rows = ("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in (metrics, values))
    counted = next((name[2:] for name in metrics if name.startswith("AR") and name != f"AR{_FEWEST_COUNTED}"), None)
    if counted is None:
        return "\n".join(rows)
    note = f"up to {counted} detections per image count, since COCO's {_FEWEST_COUNTED} are fewer than the objects"
    return "\n".join([*rows, note])


def _mean(values: "NDArray[np.float64]") -> float:
    """Return the mean of those entries that exist: pycocotools writes -1 where there is nothing to find."""
    existing = values[values > -1]
    return float(existing.mean()) if existing.size else math.nan
