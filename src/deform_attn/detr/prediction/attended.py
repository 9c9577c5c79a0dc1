"""What a detector attended to in one picture: its detections, their queries, and the records of its attentions."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deform_attn import record
from deform_attn.detr.config.detector import MAX_PIXELS, ModelConfig
from deform_attn.detr.data.batch import Batch, collate
from deform_attn.detr.data.brightness import warn_if_dark
from deform_attn.detr.errors import ConfigError
from deform_attn.detr.model.deformable_detr import best_pairs, detections_of
from deform_attn.detr.model.detections import Detections
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.prediction.predict import read_picture, sample_of, whole_image
from deform_attn.evaluating import evaluating
from deform_attn.recording import Record

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Attended:
    """One picture, upright and as RGB, and what was `found` in it, the best first, each by one of `queries [k]`.

    `frame` is the (H, W), in pixels of the picture, that the locations of `records` are fractions of.
    """

    picture: "Image"
    found: Detections
    queries: Tensor
    records: list[Record]
    frame: tuple[float, float]


def attend(
    detector: Detector,
    path: Path,
    *,
    threshold: float = 0.3,
    max_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Attended:
    """Detect in the picture at `path` as `predict` does, and record where each attention looks.

    Args:
        detector: what to detect with.
        path: a file that Pillow reads.
        threshold: detections with a smaller score are left out.
        max_size: scale a larger picture to this longer side, in pixels. Default: the detector's.
        max_pixels: a picture of more pixels is an error.

    Raises:
        ConfigError: the detector's attention is dense: it reads every pixel.
        DataError: the picture cannot be read.
    """
    model = detector.model
    if model.config.transformer.attention == "dense":
        raise ConfigError(
            "attention: expected a deformable one, got 'dense', which reads every pixel; use another detector"
        )
    max_size = detector.max_size if max_size is None else max_size
    picture = read_picture(path, max_size, max_pixels)
    if picture.brightest is not None:
        warn_if_dark([(str(path), picture.brightest)])
    sample = sample_of(picture)
    batch = collate([sample])
    with torch.inference_mode(), evaluating(model), record(model) as records:
        output = model(batch.images.to(model.mean.device), batch.padding_mask.to(model.mean.device))
    pairs = best_pairs(output)
    (found,) = detections_of(pairs, output, [sample.original_size])
    (queries,) = pairs.queries
    return Attended(
        whole_image(path, picture, max_pixels),
        found.above(threshold),
        queries[found.scores >= threshold],
        records,
        _frame(model.config, batch),
    )


def _frame(config: ModelConfig, batch: Batch) -> tuple[float, float]:
    """Return what the maps span, in pixels of the original picture."""
    (sample,) = batch.samples
    stride = config.levels[-1] if config.exact_padding else 1  # the model pads to whole pixels of the coarsest map
    sides = zip(batch.images.shape[2:], sample.image.shape[1:], sample.original_size, strict=True)
    height, width = (-(-padded // stride) * stride * original / side for padded, side, original in sides)
    return height, width
