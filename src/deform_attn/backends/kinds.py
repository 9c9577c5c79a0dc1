"""Kinds of calls: what was found out about one call is found again for all that look like it, in microseconds.

A kind is all that checks and the choice of a backend look at. Sizes and options are a key of a dict; the tensors are
compared by the guards of torch.compile, in one call of C++: class, dtype, device, shape, strides, whether gradients are
recorded, and the dispatch keys that torch's modes and transforms add or take away.

No tensor is kept, and no number of one.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn.backends.kept import Kept
from deform_attn.torch_names import (
    REMEMBERED,
    TensorGuards,
    get_tracing_state,
    included_keys,
    is_forward_mode_on,
    is_function_mode_on,
    modes_of_dispatch,
    nothing_included,
)

Kind = tuple[tuple[Any, ...], list[Tensor]]  # a key, and the tensors that there are
Result = TypeVar("Result")

MOST_OF_A_KEY = 8  # layouts, dtypes and modes of calls with the same sizes and options

_OPTION_TYPES = str, float, int

# Looking a name up in torch takes as long as some of these questions do.
_Parameter, _strided, _is_compiling = torch.nn.Parameter, torch.strided, torch.compiler.is_compiling
_NOTHING_INCLUDED = nothing_included()
_tracing_state = get_tracing_state or is_tracing


class Kinds(Kept[tuple[Any, ...], list[tuple[int, Callable[..., bool], Result]]]):
    """Results by kinds of calls: of each key a few, by what the tensors look like."""

    __slots__ = ()

    def find(self, kind: Kind) -> Result | None:
        """Return what was added for such a call, or None."""
        key, tensors = kind
        kept = self.get(key)
        if kept is not None:
            for count, are_alike, result in kept:
                if count == len(tensors) and are_alike(*tensors):
                    return result
        return None

    def add(self, kind: Kind, result: Result) -> None:
        """Keep a result for such calls, of a kind that `is_plain`."""
        key, tensors = kind
        guards = TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
            dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
        )
        others = self.get(key, [])[1 - MOST_OF_A_KEY :]
        self.keep(key, [*others, (len(tensors), guards.check, result)])


def kind_of(
    backend: str | None, tensors: Sequence[Any], telling: int, spatial_shapes: Any, num_points: Any, *options: Any
) -> Kind | None:
    """Return the kind of a call, or None where it must take the long way.

    `telling` is the place of a tensor whose shape differs between most kinds, so that few of them share a key.
    """
    # The guards see transforms, and modes but for those of fake tensors. Sizes that torch.jit traces are no numbers.
    if REMEMBERED.missing or _is_compiling() or is_function_mode_on() or modes_of_dispatch() or is_forward_mode_on():
        return None
    if _tracing_state():
        return None
    # Types exactly, here and below, since to a dict 1, 1.0 and True are the same, but to the checks they are not.
    pairs, counts = _pairs(spatial_shapes), num_points if num_points is None else _counts(num_points)
    if pairs == () or counts == ():
        return None
    for option in options:
        if type(option) not in _OPTION_TYPES:
            return None
    given = []
    for tensor in tensors:
        if tensor is not None:
            # The guards end the process where a nested tensor is asked for its strides.
            if (type(tensor) is not Tensor and type(tensor) is not _Parameter) or tensor.is_nested:
                return None
            given.append(tensor)
    told = tensors[telling]
    return (backend, pairs, counts, None if told is None else told.shape, *options), given


def is_plain(kind: Kind) -> bool:
    """Return whether nothing but the kind of this call decides about it."""
    return is_alone() and all(tensor.layout is _strided for tensor in kind[1])


def is_alone() -> bool:
    """Return whether nothing is at work that would have to see an op: no mode, transform or tracer."""
    return not (
        REMEMBERED.missing
        or _is_compiling()
        or included_keys().raw_repr() not in _NOTHING_INCLUDED
        or is_function_mode_on()
        or is_forward_mode_on()
    )


def _counts(num_points: Any) -> Any:
    """Return counts of points that can be looked up, or ()."""
    if type(num_points) is int:
        return num_points
    if type(num_points) not in (list, tuple):
        return ()
    for count in num_points:
        if type(count) is not int:
            return ()
    return tuple(num_points)


def _pairs(spatial_shapes: Any) -> tuple[int, ...]:
    """Return spatial shapes that can be looked up, flat, or ()."""
    if type(spatial_shapes) is not list and type(spatial_shapes) is not tuple:
        return ()
    result: list[int] = []
    for pair in spatial_shapes:
        if (type(pair) is not tuple and type(pair) is not list) or len(pair) != 2:
            return ()
        H, W = pair
        if type(H) is not int or type(W) is not int:
            return ()
        result += pair
    return tuple(result)
