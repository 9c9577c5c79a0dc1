"""A config: a frozen dataclass that checks its fields when made and travels as a plain dictionary."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from deform_attn.detr.errors import ConfigError

_LARGEST = sys.float_info.max
_WORDS = {int: "whole number", float: "number", str: "text in quotes"}
"""Of the types that a field may have, for those who write the TOML file."""


def _checked(kind: Any, value: Any, name: str) -> Any:
    """Return `value` as `kind` (lists as tuples, dictionaries as configs); ConfigError naming it if it is none."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type) and issubclass(kind, Config) and isinstance(value, Mapping):
        return kind.from_dict(value)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_checked(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not -_LARGEST <= value <= _LARGEST:  # NaN and infinity have no place in JSON either
            raise ConfigError(f"{name}: expected a finite number, got {value!s:.40}")
        return float(value)
    options = arguments if origin is UnionType else (kind,)
    accepted = tuple(get_origin(option) or option for option in options if get_origin(option) not in (Literal, tuple))
    if accepted and isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{name}: expected {_in_words(kind)}, got {value!r}")


def _in_words(kind: Any) -> str:
    """Return what a value of `kind` is, in words."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if get_origin(kind) is UnionType:
        return " or ".join(_in_words(one) for one in arguments if one is not NoneType)
    if get_origin(kind) is tuple:
        count = "" if Ellipsis in arguments else f"{len(arguments)} "
        return f"a list of {count}{_WORDS[arguments[0]]}s"
    return "true or false" if kind is bool else f"a {_WORDS.get(kind, 'table')}"


class Config:
    """What every config can do: check its fields when made, and go to a dictionary and back."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for entry in fields(self):  # type: ignore[arg-type]
            value = _checked(hints[entry.name], getattr(self, entry.name), f"{type(self).__name__}.{entry.name}")
            object.__setattr__(self, entry.name, value)
        self.check()

    def check(self) -> None:
        """Raise ConfigError if the fields, each of its right type, cannot work together."""

    def require(self, condition: bool, advice: str) -> None:
        """Raise ConfigError with `advice` unless `condition` holds."""
        if not condition:
            raise ConfigError(f"{type(self).__name__}: {advice}")

    def require_above_zero(self, *names: str) -> None:
        """Raise ConfigError unless all of the fields called `names` are above zero."""
        for name in names:
            value = getattr(self, name)
            self.require(value > 0, f"{name}: must be above zero, got {value}")

    def require_not_negative(self, *names: str) -> None:
        """Raise ConfigError unless all of the fields called `names` are at least zero."""
        for name in names:
            value = getattr(self, name)
            self.require(value >= 0, f"{name}: must not be negative, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the config that `values` describe; fields left out have their defaults.

        Raises:
            ConfigError: `values` is no mapping, or has an unknown, missing or wrong field, which the message names.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__}: expected a table, got {values!r}")
        known = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
        if unknown := sorted(str(name) for name in values if name not in known):
            raise ConfigError(f"{cls.__name__}: unknown field {unknown[0]!r}; the fields are {', '.join(known)}")
        try:
            return cls(**values)
        except TypeError as error:  # a field without a default is missing
            raise ConfigError(f"{cls.__name__}: {error}") from error
