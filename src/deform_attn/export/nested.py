"""Nested arguments and outputs: the tensors in tuples, lists and dicts, in their order."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors(thing: Any) -> list[Tensor]:
    """Return the tensors in a thing."""
    return [tensor for _, tensor in named("", thing)]


def named(name: str, thing: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a thing with their names, the fields and places on the way joined by underscores."""
    if isinstance(thing, Tensor):
        yield name, thing
    elif isinstance(thing, Mapping):
        for key, part in thing.items():
            yield from named(f"{name}_{key}" if name else str(key), part)
    elif isinstance(thing, tuple | list):
        fields = getattr(thing, "_fields", range(len(thing)))
        for field, part in zip(fields, thing, strict=True):
            yield from named(f"{name}_{field}" if name else str(field), part)


def mapped(thing: Any, change: Callable[[Tensor], Any], instead: Callable[[Any], Any] = lambda other: other) -> Any:
    """Return a thing with each tensor changed, and `instead` of what is none."""
    if isinstance(thing, Tensor):
        return change(thing)
    if isinstance(thing, Mapping):
        return {key: mapped(part, change, instead) for key, part in thing.items()}
    if isinstance(thing, tuple | list):
        return type(thing)([mapped(part, change, instead) for part in thing])
    return instead(thing)
