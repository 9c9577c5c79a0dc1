"""The settings of a training run: the tables of a TOML file, and what is laid over them."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_type_hints

from deform_attn.detr.config.base import Config
from deform_attn.detr.config.detector import MAX_PIXELS, ModelConfig, TrainConfig
from deform_attn.detr.errors import ConfigError
from deform_attn.detr.extra import detr_extra

DEFAULTS: dict[str, Any] = {
    "model": {"transformer": {"num_queries": 100}},
    "train": {
        "epochs": 50,
        "batch_size": 8,
        "augment": {
            "crop": (0.7, 1.0),
            "horizontal_flip": True,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
        },
    },
}
"""Where a run on somebody's pictures differs from the configs' defaults, which are the demo's."""


@dataclass(frozen=True)
class DataConfig(Config):
    """The data: `dir` is the folder with images and COCO JSON.

    Images whose longer side exceeds `max_size` pixels are scaled down to it. Not set, they keep their size, or get that
    of the starting weights. An image of more than `max_pixels`, width times height, is an error. Without a validation
    split, the share `hold_out` of the images is used as one.
    """

    dir: str | None = None
    max_size: int | None = None
    max_pixels: int = MAX_PIXELS
    hold_out: float = 0.0

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        self.require(self.max_size is None or self.max_size > 0, f"max_size: must be above zero, got {self.max_size}")
        self.require_above_zero("max_pixels")
        self.require(0 <= self.hold_out < 1, f"hold_out: must be at least 0 and below 1, got {self.hold_out}")


@dataclass(frozen=True)
class Settings(Config):
    """A run: its starting weights or else its model, its training, and its data.

    `start` is a checkpoint: its folder, or a hub id in the Hugging Face cache on this disk. The model is then that of
    the checkpoint, so leave out the table `model`. Without it the weights are random. The number of classes comes from
    the data.
    """

    # model.num_classes holds a place only: model_for has the number.

    start: str | None = None
    model: ModelConfig = field(default_factory=lambda: ModelConfig(1))
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def model_for(self, num_classes: int) -> ModelConfig:
        """Return the model's config for that number of classes."""
        return replace(self.model, num_classes=num_classes)

    @classmethod
    def from_layers(cls, *layers: Mapping[str, Any]) -> Self:
        """Return the settings of `layers` over the defaults; a later layer overrides an earlier one.

        Raises:
            ConfigError: a key is unknown, a value is wrong, or both starting weights and a model are given.
        """
        given = merged(*layers)
        model = given.get("model", {})
        if isinstance(model, Mapping) and "num_classes" in model:
            raise ConfigError("model: num_classes comes from the data; leave it out")
        if given.get("start") is not None and model:
            raise ConfigError(
                f"model: the starting weights {given['start']} have a model of their own; leave out either --from, "
                "or --queries, --backbone and the table [model]"
            )
        values = merged(DEFAULTS, {"model": {"num_classes": 1}}, given)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(_with_tables(str(error))) from error

    def to_toml(self) -> str:
        """Return the settings as a TOML file, with all defaults. Fields that are None are left out."""
        with detr_extra():
            import tomlkit

        values = _without_none(self.to_dict())
        del values["model"]["num_classes"]
        if self.start is not None:
            del values["model"]
        return tomlkit.dumps(values)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tables of the TOML file at `path`, as a layer for `Settings.from_layers`.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; the message names the file and the key.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); pass the path of a TOML file") from error
    except (ValueError, RecursionError) as error:  # no TOML, or no text at all
        raise ConfigError(f"{path}: not valid TOML ({error})") from error
    try:
        Settings.from_layers(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return values


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `layers` as one, table by table; of a key that several have, the last one's value."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def _with_tables(message: str) -> str:
    """Return a config's `message` with the name of its table in the place of the name of its class."""
    for name, table in _tables(Settings, ""):
        message = re.sub(rf"^{name}\b" if table else rf"^{name}(: |\.)", table, message)
    return message


def _tables(config: type[Config], path: str) -> list[tuple[str, str]]:
    """Return (class, table) of `config` and of all configs in its fields."""
    found = [(config.__name__, path)]
    for name, kind in get_type_hints(config).items():
        if isinstance(kind, type) and issubclass(kind, Config):
            found += _tables(kind, f"{path}.{name}".lstrip("."))
    return found


def _without_none(value: Any) -> Any:
    """Return `value` without the keys, at any depth, whose value is None, which TOML cannot say."""
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list | tuple) else value
