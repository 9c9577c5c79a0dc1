"""A detector in a file of ONNX, run by ONNX Runtime: no model of PyTorch is built."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deform_attn.detr.data.base import Category
from deform_attn.detr.data.batch import Batch
from deform_attn.detr.errors import CheckpointError, DataError, one_line
from deform_attn.detr.model.deformable_detr import Output, postprocess
from deform_attn.detr.model.detections import Detections
from deform_attn.detr.prediction.onnx_model import METADATA
from deform_attn.export.extra import onnx_extra
from deform_attn.export.onnxruntime import session_options


class OnnxModel:
    """What a session of ONNX Runtime computes: it detects as `DeformableDetr.detect` does."""

    def __init__(self, session: Any, path: str | os.PathLike[str], stride: int) -> None:
        self._session = session
        self._path = path
        self._stride = stride
        sizes = session.get_inputs()[0].shape  # a name where any number will do
        self.batch, _, self.height, self.width = (size if isinstance(size, int) else None for size in sizes)

    def detect(self, batch: Batch, limit: int | None = None) -> list[Detections]:
        """Return the `limit` most certain detections of each picture, in pixels of its original size.

        Raises:
            DataError: a picture is larger than the file takes.
        """
        images, mask = self._framed(batch)
        count, step = len(images), self.batch or len(images)
        chunks = [self._run(images[i : i + step], mask[i : i + step]) for i in range(0, count, step)]
        logits, boxes = (torch.cat(parts)[:count] for parts in zip(*chunks, strict=True))
        return postprocess(Output(logits, boxes, (), None), [sample.original_size for sample in batch.samples], limit)

    def _framed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the pictures and their mask with as much padding, at the right and the bottom, as the file takes."""
        least = self._stride + 1
        height, width = batch.images.shape[2:]
        seen = [max(sample.image.shape[axis] for sample in batch.samples) for axis in (1, 2)]
        sides = self.height or max(height, least), self.width or max(width, least)
        if any(side > most for side, most in zip(seen, sides, strict=True)):
            raise DataError(
                f"{self._path}: takes images of {self.height} x {self.width} pixels (height x width), got one of "
                f"{seen[0]} x {seen[1]}; scale them down (max_size, or --max-size), or export without a size"
            )
        rest = 0, sides[1] - width, 0, sides[0] - height  # below 0 where only padding is cut off
        return F.pad(batch.images, rest), F.pad(batch.padding_mask, rest, value=True)

    def _run(self, images: Tensor, mask: Tensor) -> list[Tensor]:
        if self.batch is not None and len(images) < self.batch:
            more = [len(images) - 1] * (
                self.batch - len(images)
            )  # the last picture once more, for each that is missing
            images, mask = torch.cat((images, images[more])), torch.cat((mask, mask[more]))
        given = {"images": images.numpy(), "padding_mask": mask.numpy()}
        return [torch.from_numpy(each) for each in self._session.run(["logits", "boxes"], given)]


@dataclass(frozen=True)
class OnnxDetector:
    """A file of ONNX and what it says of itself, in place of a `Detector`."""

    model: OnnxModel
    categories: tuple[Category, ...]
    max_size: int | None


def read_onnx(path: str | os.PathLike[str]) -> OnnxDetector:
    """Return the detector in the file `path`, which `write_onnx` or `deform-attn export` wrote.

    Where the file takes pictures of one size, `max_size` is at most its shorter side, so that every picture fits.

    Raises:
        CheckpointError: there is no such file, ONNX Runtime cannot run it, or it is not such a detector.
        ModuleNotFoundError: a package of the extra `onnx` is not installed.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; pass a file of `deform-attn export --out model.onnx`")
    with onnx_extra():
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

    refused = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented)
    try:
        session = onnxruntime.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
    except (*refused, state.RuntimeException) as error:
        said = one_line(error)[-200:]
        raise CheckpointError(f"{path}: ONNX Runtime does not run it ({said}); export it again") from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise CheckpointError(
            f"{path}: not a detector of deform-attn (no {METADATA} in its metadata); "
            "pass a file of `deform-attn export --out model.onnx`"
        )
    said = json.loads(text)
    categories = tuple(Category(each["id"], each["name"]) for each in said["categories"])
    model = OnnxModel(session, path, said["stride"])
    sizes = [size for size in (said["max_size"], model.height, model.width) if size is not None]
    return OnnxDetector(model, categories, min(sizes, default=None))
