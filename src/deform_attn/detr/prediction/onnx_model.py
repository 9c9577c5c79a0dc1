"""A detector as a file of ONNX, which runs without PyTorch, and what the file says of it."""

import json
import os
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from deform_attn.detr.errors import ExportError
from deform_attn.detr.files import naming
from deform_attn.detr.model.deformable_detr import DeformableDetr
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.prediction.export_model import LastLayer, description, pictures
from deform_attn.export import Exported, to_onnx

METADATA = "deform_attn.detector"
"""The key in the file's metadata, of a JSON object. Its entries:

`categories`: a list of `id` and `name` in the order of the labels; `max_size`: the longer side in pixels to which
pictures are scaled down, or null; `stride`: where sizes are free both sides must be longer than it.
"""


class _Named(nn.Module):
    """What the last layer predicts, by name."""

    def __init__(self, model: DeformableDetr) -> None:
        super().__init__()
        self.last_layer = LastLayer(model)
        self.stride = model.config.levels[-1] if model.config.exact_padding else 1

    def forward(self, images: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        """Return `logits` and `boxes` as `LastLayer` does."""
        # The model pads so by -H % stride, which a graph of any size would carry through the size of every map. A
        # division of negative numbers is rounded the other way in ONNX.
        below, right = ((side + self.stride - 1) // self.stride * self.stride - side for side in images.shape[2:])
        images = functional.pad(images, (0, right, 0, below))
        padding_mask = functional.pad(padding_mask, (0, right, 0, below), value=True)
        return dict(zip(("logits", "boxes"), self.last_layer(images, padding_mask), strict=True))


def write_onnx(
    detector: Detector,
    path: str | os.PathLike[str],
    *,
    form: str = "gridsample",
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> Exported:
    """Write the detector to the file `path`, in a form of `deform_attn.export.to_onnx`, which tries it first.

    The file takes `images [N, 3, H, W]` RGB in [0, 1] and `padding_mask [N, H, W]` bool (True = padding, at the right
    and the bottom) and returns `logits [N, Q, K]`, of which the sigmoid is the score, and `boxes [N, Q, 4]`
    (cx, cy, w, h) as fractions of each picture without its padding. Its metadata describe the detector: `METADATA`.

    Args:
        detector: what to write.
        path: the file; its suffix must be `.onnx`.
        form: as in `to_onnx`.
        batch: N. Default: any.
        size: (H, W) in pixels. Default: any.
        options: those of `to_onnx` for its forms, and its `on_stage`.

    Raises:
        ExportError: it cannot be written so, or the file differs from the model; nothing is written.
        OSError: the file cannot be written.
    """
    stride = max(32, detector.model.config.levels[-1])
    height, width = size or (2 * stride, 3 * stride)
    sides = (2, 3) if size is None else ()
    rows = (0,) if batch is None else ()
    free = {"images": (*rows, *sides), "padding_mask": (*rows, *(side - 1 for side in sides))}
    example = pictures(batch or 2, height, width)
    other = pictures(batch or 3, *(size or (3 * stride + 8, 2 * stride + 24)))
    metadata = {METADATA: json.dumps(description(detector) | {"stride": stride})}
    try:
        with naming(path, "it is not written"):
            return to_onnx(
                _Named(detector.model),
                example,
                path,
                form=form,
                dynamic=free,
                verify=other,
                metadata=metadata,
                **options,
            )
    except (ValueError, TypeError) as error:
        raise ExportError(f"{path}: {error}") from error
