"""Checkpoints: directories that hold a detector and, to resume, the state of its training.

`model.safetensors` and `config.json` are what detection needs. `training.safetensors` is all that a training needs to
resume: the model again, the optimiser, and in its header the settings and the position. No file is a pickle. What
transformers and the authors of Deformable DETR write is loaded, too (see `exchange`).
"""

import os
from pathlib import Path

from deform_attn.detr.checkpoints.exchange import load_original, load_transformers
from deform_attn.detr.checkpoints.folder import (
    CONFIG,
    FORMER,
    METRICS_FILE,
    MODEL,
    TRAINING,
    check_finished,
    prepare,
    replace_files,
)
from deform_attn.detr.checkpoints.parts import assemble, settings_of, tensors_of
from deform_attn.detr.checkpoints.training_state import TrainingState, is_training, load_trained, training_bytes
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.files import json_bytes, read_json
from deform_attn.detr.model.detector import Detector

FORMAT = 1
"""Of `config.json`."""


def save(path: str | os.PathLike[str], detector: Detector, training: TrainingState | None = None) -> None:
    """Write a checkpoint to the directory `path`. It replaces an older one; other files stay.

    If the process is killed at any moment, `path` holds a checkpoint that loads and a training that resumes. Each is
    the old one or the new one. `training.safetensors` is written first, since it alone is enough to load from.

    Raises:
        CheckpointError: an earlier version of deform-attn was stopped while it wrote there.
        OSError: the files cannot be written; the old ones are still there.
    """
    check_finished(Path(path))
    replace_files(Path(path), {TRAINING: training_bytes(detector, training)} | _model_files(detector))
    (Path(path) / FORMER).unlink(missing_ok=True)
    if training is None:
        (Path(path) / TRAINING).unlink()


def save_model(path: str | os.PathLike[str], detector: Detector) -> None:
    """Write the model's own files alone, beside the state of its training, which `path` holds.

    Raises:
        OSError: they cannot be written; the old ones are still there.
    """
    replace_files(Path(path), _model_files(detector))


def _model_files(detector: Detector) -> dict[str, bytes]:
    with detr_extra():
        from safetensors.torch import save as serialise

    return {MODEL: serialise(tensors_of(detector)), CONFIG: json_bytes({"format": FORMAT, **settings_of(detector)})}


def check_target(path: str | os.PathLike[str]) -> None:
    """Make the directory `path` if it is missing, and check that `save` may write there.

    Raises:
        CheckpointError: at `path` there is no directory, or it holds files of another program, which `save` replaces.
        OSError: the directory cannot be made or written to.
    """
    folder = Path(path)
    check_finished(folder)
    prepare(folder)
    file = folder / CONFIG
    found = [name for name in (MODEL, TRAINING, METRICS_FILE) if (folder / name).exists()]
    if file.is_file():
        if not read_json(file).keys() >= {"format", "model", "categories"}:
            raise CheckpointError(f"{file}: not the file of a detector, and would be replaced; choose another folder")
    elif found and not (TRAINING in found and is_training(folder / TRAINING)):
        raise CheckpointError(
            f"{folder / found[0]}: not the file of a checkpoint, and would be replaced; choose another folder"
        )


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a checkpoint at `path`."""
    return any((Path(path) / name).is_file() for name in (CONFIG, TRAINING))


def load_model(path: str | os.PathLike[str]) -> Detector:
    """Return the detector of the checkpoint at `path`, on the CPU and in evaluation mode.

    `path` is a directory that deform-attn or Hugging Face transformers wrote, or a file of the authors' repository of
    Deformable DETR.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its parts do not fit together.
        ConfigError: a checkpoint of another project has an option that this detector does not have.
    """
    if Path(path).is_file():
        return load_original(path)
    folder = Path(path)
    check_finished(folder)
    if not (folder / CONFIG).exists() and (folder / TRAINING).exists():
        return load_trained(path)  # a save was stopped before it came to the model's own files
    config = read_json(folder / CONFIG)
    if "model_type" in config and "format" not in config:
        return load_transformers(path)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG}: expected format {FORMAT}, got {config.get('format')!r}; update deform-attn"
        )
    return assemble(config, folder / CONFIG, folder / MODEL)
