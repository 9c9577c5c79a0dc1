"""An exported detector: a file of torch.export that runs without the classes of the detector."""

import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deform_attn.detr.data.base import coco_categories
from deform_attn.detr.errors import ExportError
from deform_attn.detr.files import atomic_path
from deform_attn.detr.model.deformable_detr import DeformableDetr
from deform_attn.detr.model.detector import Detector
from deform_attn.evaluating import evaluating

_TOLERANCE = 1e-4  # of logits and boxes: the two add the same numbers, perhaps in another order


@dataclass(frozen=True)
class Exported:
    """What was exported: the `batch` and the `size` (H, W) it takes, None where any, and what it was tried on.

    `tried` is (N, H, W), `error` the largest difference from the model there.
    """

    batch: int | None
    size: tuple[int, int] | None
    tried: tuple[int, int, int]
    error: float


class LastLayer(nn.Module):
    """What the last layer of a detector predicts, as a plain tuple, which is what torch.export knows."""

    def __init__(self, model: DeformableDetr) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[N, Q, K]` and boxes `[N, Q, 4]` (cx, cy, w, h) as fractions of each picture."""
        output = self.model(images, padding_mask)
        return output.logits, output.boxes


def export_model(
    detector: Detector,
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    on_stage: Callable[[str], object] | None = None,
) -> Exported:
    """Write the detector to the file `path` as a program of torch.export, once that is seen to do as the model does.

    The program takes `images [N, 3, H, W]` RGB in [0, 1] and `padding_mask [N, H, W]` bool (True = padding, at the
    right and the bottom) and returns logits `[N, Q, K]`, of which the sigmoid is the score, and boxes `[N, Q, 4]`
    (cx, cy, w, h) as fractions of each picture without its padding. Where the size is free, both sides must be longer
    than the coarsest level's stride. What reads the file must `import deform_attn` first. Its extra file
    `detector.json` holds the categories and the `max_size` of pictures.

    Args:
        detector: what to export.
        path: the file; its suffix must be `.pt2`.
        batch: N. Default: any.
        size: (H, W) in pixels. Default: any.
        on_stage: called with a line whenever another slow stage begins.

    Raises:
        ExportError: torch cannot leave that much free, or the program differs from the model; nothing is written.
        OSError: the file cannot be written.
    """
    stride = max(32, detector.model.config.levels[-1])
    height, width = size or (2 * stride, 3 * stride)
    module, say = LastLayer(detector.model), on_stage or (lambda line: None)
    say("tracing the model with torch.export")
    with atomic_path(path) as temporary, torch.no_grad(), evaluating(detector.model), warnings.catch_warnings():
        # torch 2.13 says so of weights in channels_last order, and saves them right all the same: they are compared.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        # A batch of one, or a side of one, would be taken for a constant.
        program = _export(module, pictures(batch or 2, height, width), batch, size)
        extra = {"detector.json": json.dumps(description(detector))}
        content = io.BytesIO()  # torch's own writer says of a full disk where in its C++ it noticed
        torch.export.save(program, content, extra_files=extra)
        temporary.write_bytes(content.getbuffer())
        say("checking against PyTorch: the file is read back and run")
        loaded = torch.export.load(temporary).module()
        tried = batch or 3, *(size or (3 * stride + 8, 2 * stride + 24))
        arguments = pictures(*tried)
        expected, actual = module(*arguments), loaded(*arguments)
        error = max((a.double() - b.double()).abs().max().item() for a, b in zip(actual, expected, strict=True))
        if not error <= _TOLERANCE:
            raise ExportError(
                f"{path}: the exported program differs from the model by {error:.1e} on images of {tried}; "
                "no file is written; report it with the checkpoint's config.json"
            )
    return Exported(batch, size, tried, error)


def _export(
    module: nn.Module, arguments: tuple[Tensor, Tensor], batch: int | None, size: tuple[int, int] | None
) -> torch.export.ExportedProgram:
    """Return the program, with every size free that is asked to be."""
    free = torch.export.Dim.AUTO
    rows = {} if batch else {0: free}
    sides = (2, 3) if size is None else ()
    dynamic = {**rows, **dict.fromkeys(sides, free)}, {**rows, **{side - 1: free for side in sides}}
    program = torch.export.export(module, arguments, dynamic_shapes=dynamic, strict=False)
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"][-2:]
    for tensor, axes in zip(inputs, dynamic, strict=True):
        if any(isinstance(tensor.shape[axis], int) for axis in axes):
            fixed = list(tensor.shape)
            raise ExportError(f"torch.export fixes the sizes of this model's input to {fixed}; pass --batch and --size")
    return program


def pictures(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return random pictures with their mask, the last of them padded in both directions."""
    numbers = torch.Generator().manual_seed(0)
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    mask[-1, height - height // 4 :] = True
    mask[-1, :, width - width // 4 :] = True
    return torch.rand(batch, 3, height, width, generator=numbers), mask


def description(detector: Detector) -> dict[str, object]:
    """Return what a file says of its detector: the categories in the order of their labels, and the `max_size`."""
    return {"categories": coco_categories(detector.categories), "max_size": detector.max_size}
