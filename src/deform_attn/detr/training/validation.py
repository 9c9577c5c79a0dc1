"""Validation: what a detector is worth on a data set, its pictures shared out among processes."""

from typing import Any

from deform_attn.detr.data.base import DetectionData, check_categories
from deform_attn.detr.data.batch import collate
from deform_attn.detr.evaluation.metrics import counted_detections, evaluate
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.processes import Processes
from deform_attn.evaluating import evaluating


def evaluate_model(
    detector: Detector, data: DetectionData, batch_size: int = 16, processes: Processes | None = None
) -> dict[str, float]:
    """Return COCO's metrics of `detector` on `data`. With `processes`, each detects in its own part of the images.

    Raises:
        DataError: the categories of `data` are not the detector's.
    """
    check_categories(data, detector.categories, "the evaluation data", "the detector")
    starts = range(0, len(data), batch_size)
    if processes is None:
        truth = data.ground_truth()
        return evaluate(truth, _detect(detector, data, starts, batch_size, counted_detections(truth)))
    truth, counted = {}, 0
    with processes.together():
        if processes.is_main:
            truth = data.ground_truth()
            counted = counted_detections(truth)
    counted = processes.share(counted)
    first, last = (len(starts) * rank // processes.count for rank in (processes.rank, processes.rank + 1))
    with processes.together():
        found = _detect(detector, data, starts[first:last], batch_size, counted)
    found = processes.gather(found)
    metrics: dict[str, float] = {}
    with processes.together():
        if processes.is_main:
            metrics = evaluate(truth, found)
    return processes.share(metrics)


def _detect(
    detector: Detector, data: DetectionData, starts: range, batch_size: int, limit: int
) -> list[dict[str, Any]]:
    """Return COCO's records of the `limit` most certain detections of each picture in the batches from `starts`."""
    found: list[dict[str, Any]] = []
    with evaluating(detector.model):
        for start in starts:
            batch = collate([data[i] for i in range(start, min(start + batch_size, len(data)))])
            for sample, detections in zip(batch.samples, detector.model.detect(batch, limit), strict=True):
                found += detections.to_coco(sample.image_id, data.categories)
    return found
