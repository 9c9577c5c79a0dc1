"""Exchange: detectors in the files of transformers and of the authors' repository of Deformable DETR.

Both leave the normalisation of pictures to whoever calls their models; ours contains it, so that its input is RGB in
[0, 1] where theirs is `(image - mean) / std` with ImageNet's numbers, 0 in the padding.
"""

import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deform_attn.detr.checkpoints.folder import CONFIG, MODEL, check_finished, prepare, replace_files
from deform_attn.detr.checkpoints.foreign_settings import from_original, from_transformers, to_transformers
from deform_attn.detr.checkpoints.layouts import (
    Layout,
    export_state,
    import_state,
    modern_names,
    original_layout,
    transformers_layout,
)
from deform_attn.detr.checkpoints.published import check_published
from deform_attn.detr.config.detector import ModelConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.errors import CheckpointError, ConfigError
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import atomic_path, json_bytes, read_json, read_tensors
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector

MODEL_TYPE = "deformable_detr"
"""What the `config.json` of a directory of transformers calls this model."""

_OURS = "deform_attn"
"""The entry of such a `config.json` that keeps what transformers has no place for."""


def load_transformers(path: str | os.PathLike[str]) -> Detector:
    """Return the detector in a directory that `DeformableDetrForObjectDetection.save_pretrained` wrote.

    It may be of transformers 4 or 5, in one file or several, its backbone from transformers or a ResNet from timm. The
    categories are those of `id2label`; `max_size` is None, as the size of pictures is no part of such a checkpoint.

    Raises:
        CheckpointError: a file or tensor is missing, damaged, unknown or of the wrong shape; the message names it.
        ConfigError: an option that a detector does not have; the message names it.
    """
    check_finished(Path(path))
    settings, file = Path(path) / CONFIG, Path(path) / MODEL
    values = read_json(settings)
    if values.get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{settings}: model_type is {values.get('model_type')!r}, expected {MODEL_TYPE!r}; pass such a one"
        )
    try:
        config = from_transformers(values)
    except ConfigError as error:
        raise ConfigError(f"{settings}: {error}; choose another checkpoint") from error
    tensors = modern_names(_read_shards(file))
    layout = transformers_layout(torchvision_names="model.backbone.model.conv1.weight" in tensors)
    categories, max_size = _categories(values, config.num_classes, settings)
    return _detector(config, categories, max_size, tensors, layout, file)


def save_transformers(path: str | os.PathLike[str], detector: Detector) -> None:
    """Write `detector` as a directory that `DeformableDetrForObjectDetection.from_pretrained` loads.

    Raises:
        ConfigError: it is not the published detector (see `published`); the message names the field that differs.
        CheckpointError: `path` holds files of another model.
        OSError: the files cannot be written.
    """
    with detr_extra():
        from safetensors.torch import save as serialise

    model = detector.model
    file = Path(path) / CONFIG
    config = to_transformers(model.config) | {
        "id2label": {str(i): category.name for i, category in enumerate(detector.categories)},
        "label2id": {category.name: i for i, category in enumerate(detector.categories)},
        _OURS: {"category_ids": [category.id for category in detector.categories], "max_size": detector.max_size},
    }
    if file.exists() and read_json(file).get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{file}: is of another model and would be replaced; choose another directory")
    copied = ("class_embed", "bbox_embed") if model.config.transformer.two_stage else ("bbox_embed",)
    depth, refine = model.config.transformer.decoder_layers, model.config.transformer.refine
    tensors = export_state(_state(model), transformers_layout(), depth, copied=copied if refine else ())
    prepare(Path(path))
    content = serialise(tensors, metadata={"format": "pt"})
    replace_files(Path(path), {MODEL: content, CONFIG: json_bytes(config)})


def load_original(path: str | os.PathLike[str]) -> Detector:
    """Return the detector in a file of the authors' repository (fundamentalvision/Deformable-DETR).

    Nothing in the file is executed. What its tensors do not show comes from the options of the training that it keeps:
    see `from_original`. It has no names of categories: each is called by its number.

    Raises:
        CheckpointError: the file is missing or damaged, or a tensor is missing, unknown or of the wrong shape.
        ConfigError: an option that a detector does not have; the message names it.
    """
    file = Path(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}; pass a file of the authors' repository") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged, or not a file of torch.save with tensors alone ({error})") from error
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{file}: has no state of a model under 'model'; pass a file of the authors' repository")
    arguments = content.get("args", {})
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    if not isinstance(arguments, dict):
        raise CheckpointError(f"{file}: 'args' must be the options of a training, got {type(arguments).__name__}")
    try:
        config = from_original(tensors, arguments)
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{file}: {error}") from error
    categories = tuple(Category(i, str(i)) for i in range(config.num_classes))
    return _detector(config, categories, None, tensors, original_layout(), file)


def save_original(path: str | os.PathLike[str], detector: Detector) -> None:
    """Write `detector` as a file of the authors' repository. The file has neither names nor ids of the categories.

    Raises:
        ConfigError: it is not the published detector with a ResNet; the message names the field that differs.
        CheckpointError: without refinement, the heads of its layers differ. In that repository all layers share one.
        OSError: the file cannot be written.
    """
    model, file = detector.model, Path(path)
    config, transformer = model.config, model.config.transformer
    check_published(config)
    copied = (("bbox_embed",) if transformer.refine else ()) + (("class_embed",) if transformer.two_stage else ())
    tensors = export_state(_state(model), original_layout(), transformer.decoder_layers, copied=copied)
    if not transformer.refine:
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind in ("class_embed", "bbox_embed") and not torch.equal(
                tensor, tensors[f"{kind}.0.{rest.partition('.')[2]}"]
            ):
                raise CheckpointError(
                    f"{file}: tensor {name} differs from the first layer's, with which it is shared there"
                )
    arguments = {
        "nheads": transformer.num_heads, "num_queries": transformer.num_queries, "dropout": transformer.dropout,
        "two_stage": transformer.two_stage, "with_box_refine": transformer.refine,
    }  # fmt: skip
    with atomic_path(file) as temporary:
        torch.save({"model": tensors, "args": arguments}, temporary)


def _state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _detector(
    config: ModelConfig,
    categories: tuple[Category, ...],
    max_size: int | None,
    tensors: Mapping[str, Tensor],
    layout: Layout,
    file: Path,
) -> Detector:
    """Return the detector of `config` with the `tensors` of `file`."""
    model = build_model(config)
    depth = config.transformer.decoder_layers
    model.load_state_dict(import_state(tensors, layout, model.state_dict(), depth, file))
    return Detector(model.eval(), categories, max_size)


def _read_shards(file: Path) -> dict[str, Tensor]:
    """Return the tensors of `file`, or of the files that its index lists."""
    index = file.with_name(f"{file.name}.index.json")
    if file.exists() or not index.exists():
        return read_tensors(file)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(Path(str(name)).name == name for name in places.values()):
        raise CheckpointError(
            f"{index}: damaged (expected a weight_map from tensors to files in its folder); download it again"
        )
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        tensors |= read_tensors(file.with_name(name))
    return tensors


def _categories(values: Mapping[str, Any], count: int, file: Path) -> tuple[tuple[Category, ...], int | None]:
    """Return the categories of the configuration `values`, and the size of pictures if we wrote it."""
    names = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(count)}
    ours = values.get(_OURS, {})
    try:
        ids = [int(number) for number in ours.get("category_ids", range(count))]
        categories = tuple(Category(ids[i], str(names[str(i)])) for i in range(count))
        max_size = ours.get("max_size")
        if max_size is not None and (not isinstance(max_size, int) or max_size < 1):
            raise ValueError(f"max_size: expected a number of pixels, at least 1, or null, got {max_size!r}")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: id2label does not name the {count} classes ({error!r})") from error
    return categories, max_size
