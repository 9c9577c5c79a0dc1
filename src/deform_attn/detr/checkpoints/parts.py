"""A detector in parts: its settings and its tensors, as each file of a checkpoint has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deform_attn.detr.config.detector import ModelConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.files import read_tensors
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector


def settings_of(detector: Detector) -> dict[str, Any]:
    """Return what, beside its tensors, makes `detector`, for JSON."""
    return {
        "model": detector.model.config.to_dict(),
        "categories": [{"id": category.id, "name": category.name} for category in detector.categories],
        "max_size": detector.max_size,
    }


def tensors_of(detector: Detector) -> dict[str, Tensor]:
    """Return the tensors of `detector` by name, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in detector.model.state_dict().items()}


def assemble(config: Mapping[str, Any], file: Path, tensors: Path, prefix: str = "") -> Detector:
    """Return a detector on the CPU and in evaluation mode.

    Args:
        config: its settings.
        file: where they are from, for messages.
        tensors: the safetensors file of its tensors, all of them and no others.
        prefix: of their names there.

    Raises:
        CheckpointError: there is no such file, it is damaged, or the parts do not fit together.
    """
    try:
        settings = ModelConfig.from_dict(config["model"])
        categories = tuple(Category(int(entry["id"]), str(entry["name"])) for entry in config["categories"])
        max_size = config.get("max_size")
        if max_size is not None and (not isinstance(max_size, int) or max_size < 1):
            raise ValueError(f"max_size: expected a number of pixels, at least 1, or null, got {max_size!r}")
        if len(categories) != settings.num_classes:
            raise ValueError(f"{len(categories)} categories for {settings.num_classes} classes")
        model = build_model(settings)  # RuntimeError: larger than the memory
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(
            f"{file}: not the configuration of a detector, or damaged ({error!r}); pass another checkpoint"
        ) from error
    found, expected = read_tensors(tensors, prefix), model.state_dict()
    for name in sorted(found.keys() ^ expected.keys()):
        what = "lacks" if name in expected else "has an unknown"
        raise CheckpointError(
            f"{tensors}: {what} tensor {name}; the file is of another model than {file.name} describes"
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"expected {list(expected[name].shape)}, as {file.name} says, got {list(tensor.shape)}"
            raise CheckpointError(f"{tensors}: tensor {name}: {shapes}; the file is of another model")
    model.load_state_dict(found)
    return Detector(model.eval(), categories, max_size)
