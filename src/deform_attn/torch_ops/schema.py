"""The two ops as torch knows them, `torch.ops.deform_attn.*`: one table of their arguments, and what follows from it.

A backend with compiled kernels registers them for its device with `LIBRARY.impl`. What torch does around a kernel is
registered beside this file: autograd.py (backward and forward), vmap.py, autocast.py, flops.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs

LIBRARY = torch.library.Library("deform_attn", "DEF")


class Argument(NamedTuple):
    """An argument of an op: its type, as torch's schemas spell it, and of a tensor what is done around a kernel.

    `has_queries` is whether it has an axis Q behind N, `has_gradient` whether it has a gradient.
    """

    name: str
    type: str
    has_queries: bool = False
    has_gradient: bool = False


def _of_queries(name: str) -> Argument:
    return Argument(name, "Tensor", has_queries=True, has_gradient=True)


_VALUE = Argument("value", "Tensor", has_gradient=True)
_SHAPES = Argument("spatial_shapes", "SymInt[]")  # flat: H_1, W_1, H_2, ...
_OPTIONS = Argument("num_points", "SymInt[]"), Argument("interpolation", "str"), Argument("padding_mode", "str")


class Op:
    """An op and its backward op, `name` and `name_backward`, which torch has as `forward` and `backward`.

    The backward op takes the gradient of the output, the arguments of the op, and which gradients are `wanted`; those
    that are not come back empty.
    """

    def __init__(self, name: str, *arguments: Argument) -> None:
        self.name = name
        self.names = tuple(argument.name for argument in arguments)
        places = list(enumerate(arguments))
        self.tensors = tuple(i for i, argument in places if argument.type.startswith("Tensor"))
        self.gradients = tuple(i for i, argument in places if argument.has_gradient)
        self.without_queries = tuple(i for i in self.tensors if not arguments[i].has_queries)
        taken = ", ".join(f"{argument.type} {argument.name}" for argument in arguments)
        given = ", ".join(["Tensor"] * len(self.gradients))
        LIBRARY.define(f"{name}({taken}) -> Tensor")
        LIBRARY.define(f"{name}_backward(Tensor grad_output, {taken}, bool[] wanted) -> ({given})")
        torch.library.register_fake(f"deform_attn::{name}", self._fake, lib=LIBRARY)
        torch.library.register_fake(f"deform_attn::{name}_backward", self._fake_backward, lib=LIBRARY)
        self.forward = getattr(torch.ops.deform_attn, name).default
        self.backward = getattr(torch.ops.deform_attn, f"{name}_backward").default

    def option(self, name: str, args: Sequence[Any]) -> Any:
        """Return the argument called `name` among those of a call of the op."""
        return args[self.names.index(name)]

    def _fake(self, *args: Any) -> Tensor:
        value, points = args[0], args[self.gradients[-1]]
        N, _, M, D = value.shape
        output: Tensor = value.new_empty((N, points.shape[1], M * D))
        return output

    def _fake_backward(self, _grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *call, wanted = args
        return tuple(
            torch.empty_like(call[i], memory_format=torch.contiguous_format) if want else call[i].new_empty(0)
            for i, want in zip(self.gradients, wanted, strict=True)
        )


SAMPLE = Op(
    "multi_scale_deformable_attention",
    _VALUE,
    _SHAPES,
    _of_queries("sampling_locations"),
    _of_queries("attention_weights"),
    *_OPTIONS,
)
ATTEND = Op(
    "deformable_attention",
    _VALUE,
    _SHAPES,
    _of_queries("reference_points"),
    _of_queries("sampling_offsets"),
    _of_queries("attention_logits"),
    Argument("padding_mask", "Tensor?"),
    Argument("offset_scale", "float"),
    *_OPTIONS,
)
OPS = SAMPLE, ATTEND

# A judged call has the same names as its op, in an order of its own.
_SAMPLE_FIELDS = tuple(map(SamplingInputs._fields.index, SAMPLE.names))
_ATTEND_FIELDS = tuple(map(AttentionInputs._fields.index, ATTEND.names))
_SCALE = ATTEND.names.index("offset_scale")


def sample(inputs: SamplingInputs) -> Tensor:
    """Run the classic op through torch's dispatcher."""
    output: Tensor = SAMPLE.forward(*arguments(inputs))
    return output


def attend(inputs: AttentionInputs) -> Tensor:
    """Run the op from raw offsets and logits through torch's dispatcher."""
    output: Tensor = ATTEND.forward(*arguments(inputs))
    return output


def register(op: Op, forward: Callable[..., Any], backward: Callable[..., Any], key: str) -> None:
    """Register the kernels of an op and its backward op for a device, or another dispatch key of torch."""
    LIBRARY.impl(op.name, forward, key)
    LIBRARY.impl(f"{op.name}_backward", backward, key)


def op_of(inputs: Inputs) -> Op:
    """Return the op of a judged call."""
    return SAMPLE if isinstance(inputs, SamplingInputs) else ATTEND


def arguments(inputs: Inputs) -> list[Any]:
    """Return a judged call as the arguments of its op."""
    if isinstance(inputs, SamplingInputs):
        args: list[Any] = [inputs[i] for i in _SAMPLE_FIELDS]
    else:
        args = [inputs[i] for i in _ATTEND_FIELDS]
        args[_SCALE] = float(args[_SCALE])
    args[1] = flat(args[1])
    return args


def flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Return pairs (H, W) as the flat list that an op takes."""
    return [size for shape in shapes for size in shape]


def pairs(shapes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the flat list that an op takes as pairs (H, W)."""
    return list(zip(shapes[::2], shapes[1::2], strict=True))
