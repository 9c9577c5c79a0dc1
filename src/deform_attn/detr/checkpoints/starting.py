"""Starting weights: a checkpoint on this disk, fitted to the categories to be learnt. Nothing is downloaded."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deform_attn.detr.checkpoints.checkpoint import load_model
from deform_attn.detr.config.detector import ModelConfig
from deform_attn.detr.data.base import Category, listed
from deform_attn.detr.errors import CheckpointError, ConfigError, UserError, one_line, printable, quoted
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.model.deformable_detr import DeformableDetr, build_model
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.model.heads import ClassHead

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Start:
    """A `detector` with starting weights, and the names of the categories it knew before (`kept`) and not (`new`)."""

    detector: Detector
    kept: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        if not self.new:
            return f"all {len(self.kept)} categories are known"
        known = f"known: {_names(self.kept)}; " if self.kept else ""
        return f"{known}new, trained from scratch: {_names(self.new)}; all other weights are kept"


def _names(names: Sequence[str]) -> str:
    return listed([printable(name, 80) for name in names])


def resolve(source: str | os.PathLike[str]) -> Path:
    """Return the path that `source` names: itself if it exists, or a model of that id in the hub's cache on this disk.

    Raises:
        CheckpointError: there is neither; the message says how to put it there.
    """
    if Path(source).exists():
        return Path(source)
    text = os.fspath(source)
    if not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"{text}: no such directory; pass the directory of a checkpoint")
    with detr_extra():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{text}: no such directory, nor a model of that name in the hub's cache on this disk; check the "
            f"path, or put the model there with `hf download {text}` (deform-attn downloads nothing)"
        ) from error


def load(source: str | os.PathLike[str]) -> Detector:
    """Return the detector of the checkpoint that `source` names, see `resolve` and `load_model`."""
    return load_model(resolve(source))


def new_model(config: ModelConfig) -> DeformableDetr:
    """Return a new model; a backbone's source, if it is a text, is resolved as any other.

    Raises:
        CheckpointError: there is no such backbone on this disk.
        ConfigError: what is there is no backbone, or does not go with the rest of `config`.
    """
    source = config.backbone.source
    if source is None:
        return build_model(config)
    name = source if isinstance(source, str) else "model.backbone.source"
    if isinstance(source, str):
        config = replace(config, backbone=replace(config.backbone, source=str(resolve(source))))
    with detr_extra():
        from huggingface_hub.errors import StrictDataclassError
    try:
        return build_model(config)
    except UserError:
        raise
    except (
        AttributeError,
        KeyError,
        OSError,
        StrictDataclassError,
        ValueError,
    ) as error:  # transformers', of what is no backbone
        raise ConfigError(f"{name}: holds no backbone of transformers ({one_line(error)[:200]!r})") from error


def fit_categories(before: Detector, categories: Sequence[Category]) -> Start:
    """Return a detector of `categories` with the weights of `before`; categories are the same if their names are.

    The rows of the class heads move to the labels that their categories have now; those of new categories are drawn
    from torch's random numbers. All other weights are kept. Of several categories of one name, those of one id are the
    same, and the rest are in order; a name that was there once is that category for all that have it now.

    Raises:
        CheckpointError: there were several categories of one name, and now there are more or fewer.
    """
    label_before = _labels_before(before.categories, categories)
    model = build_model(replace(before.model.config, num_classes=len(categories)))
    fresh, state = model.state_dict(), before.model.state_dict()
    heads = [name for name, module in model.named_modules() if isinstance(module, ClassHead)]
    for name in (f"{head}.{part}" for head in heads for part in ("weight", "bias")):
        rows = fresh[name].clone()
        for label, old in label_before.items():
            rows[label] = state[name][old]
        state[name] = rows
    model.load_state_dict(state)
    kept, new = (
        tuple(category.name for label, category in enumerate(categories) if (label in label_before) is known)
        for known in (True, False)
    )
    return Start(Detector(model, tuple(categories), before.max_size), kept, new)


def _labels_before(before: Sequence[Category], now: Sequence[Category]) -> dict[int, int]:
    """Return, by its label now, the label that each category had before, of those that were known."""
    found: dict[int, int] = {}
    for name in dict.fromkeys(category.name for category in now):
        ours, theirs = ([i for i, category in enumerate(all_) if category.name == name] for all_ in (now, before))
        if len(theirs) > 1 and len(ours) != len(theirs):
            ids = ", ".join(str(before[label].id) for label in theirs)
            raise CheckpointError(
                f"starting weights: {len(theirs)} categories are called {quoted(name)} (ids {ids}), "
                f"{len(ours)} of the data; "
                "give the data as many, or the category another name, under which it is trained from scratch"
            )
        if len(theirs) == 1:
            found |= dict.fromkeys(ours, theirs[0])
            continue
        same = {label: old for label in ours for old in theirs if now[label] == before[old]}
        left = [[label for label in ours if label not in same], [old for old in theirs if old not in same.values()]]
        found |= same | dict(zip(*left, strict=False))  # nothing is left of ours where they knew none
    return found
