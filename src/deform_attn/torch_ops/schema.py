"""The two ops as torch knows them, `torch.ops.deform_attn.*`: one table of their arguments, and what follows from it.

A backend with compiled kernels registers them for its device (`register`), those for the CPU from C++. What torch does
around a kernel is registered beside this file: autograd.py (backward and forward), vmap.py, autocast.py, flops.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs
from deform_attn.messages import fail
from deform_attn.shape_checks import Pairs, unread

SIZES = 1  # the place of the sizes among the arguments
Sizes = Sequence[int] | Tensor  # as an op takes them

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
_INTS, _TENSOR = Argument("spatial_shapes", "SymInt[]"), Argument("spatial_shapes", "Tensor")
_OPTIONS = Argument("num_points", "SymInt[]"), Argument("interpolation", "str"), Argument("padding_mode", "str")


class Op:
    """An op and its backward op, `name` and `name_backward`, which torch has as `forward` and `backward`.

    Of each there are two overloads, by how it takes the sizes of the maps: "default" takes a flat list of ints, H_1,
    W_1, H_2, ..., and "Tensor" an integer tensor `[L, 2]`.

    The backward op takes the gradient of the output, the arguments of the op, and which gradients are `wanted`; those
    that are not come back empty.

    The op that takes ints has a twin, the overload "judged", for calls that were judged before and that nothing of
    torch has to see (backends/remembered.py). It takes the tensors as the entry points do, with or without their axes
    for the levels, and all else but the scale in one list, `call`: whether nearest, whether border, and H, W, P of each
    level. It has kernels of devices alone: no autograd, no fake tensors, no vmap.
    """

    def __init__(self, name: str, overload: str, *arguments: Argument) -> None:
        suffix = "" if overload == "default" else f".{overload}"
        self.name, self.backward_name = f"{name}{suffix}", f"{name}_backward{suffix}"
        self.names = tuple(argument.name for argument in arguments)
        self._num_points = self.names.index("num_points")
        places = list(enumerate(arguments))
        self.tensors = tuple(i for i, argument in places if argument.type.startswith("Tensor"))
        self.gradients = tuple(i for i, argument in places if argument.has_gradient)
        self.without_queries = tuple(i for i in self.tensors if not arguments[i].has_queries and i != SIZES)
        taken = ", ".join(f"{argument.type} {argument.name}" for argument in arguments)
        given = ", ".join(["Tensor"] * len(self.gradients))
        self.schemas = [
            f"{self.name}({taken}) -> Tensor",
            f"{self.backward_name}(Tensor grad_output, {taken}, bool[] wanted) -> ({given})",
        ]
        if overload == "default":
            tensors = ", ".join(f"{each.type} {each.name}" for each in arguments if each not in (_INTS, *_OPTIONS))
            self.schemas.append(f"{name}.judged({tensors}, int[] call) -> Tensor")
        for text in self.schemas:
            LIBRARY.define(text)
        if overload == "default":
            LIBRARY.impl(f"{name}.judged", torch.library.fallthrough_kernel, "Autograd")
            self.judged = getattr(torch.ops.deform_attn, name).judged
        torch.library.register_fake(f"deform_attn::{self.name}", self._fake, lib=LIBRARY)
        torch.library.register_fake(f"deform_attn::{self.backward_name}", self._fake_backward, lib=LIBRARY)
        self.forward = getattr(getattr(torch.ops.deform_attn, name), overload)
        self.backward = getattr(getattr(torch.ops.deform_attn, f"{name}_backward"), overload)

    def option(self, name: str, args: Sequence[Any]) -> Any:
        """Return the argument called `name` among those of a call of the op."""
        return args[self.names.index(name)]

    def judge(self, args: Sequence[Any]) -> None:
        """Judge the sizes of a call, but for their numbers: graphs and callers by name hand them straight to the op."""
        value, sizes, levels = args[0], args[SIZES], len(args[self._num_points])
        if isinstance(sizes, Tensor):
            unread(sizes, value, levels)
        elif len(sizes) != 2 * levels:
            fix = "Give a size (H, W) and a count of points for each level."
            fail("spatial_shapes", f"{2 * levels} ints, H and W of each level", str(len(sizes)), fix)

    def _fake(self, *args: Any) -> Tensor:
        self.judge(args)
        value, points = args[0], args[self.gradients[-1]]
        N, _, M, D = value.shape
        output: Tensor = value.new_empty((N, points.shape[1], M * D))
        return output

    def _fake_backward(self, _grad_output: Tensor, *args: Any) -> tuple[Tensor, ...]:
        *call, wanted = args
        self.judge(call)
        return tuple(
            torch.empty_like(call[i], memory_format=torch.contiguous_format) if want else call[i].new_empty(0)
            for i, want in zip(self.gradients, wanted, strict=True)
        )


def _sample_op(overload: str, sizes: Argument) -> Op:
    points = _of_queries("sampling_locations"), _of_queries("attention_weights")
    return Op("multi_scale_deformable_attention", overload, _VALUE, sizes, *points, *_OPTIONS)


def _attend_op(overload: str, sizes: Argument) -> Op:
    points = _of_queries("reference_points"), _of_queries("sampling_offsets"), _of_queries("attention_logits")
    others = Argument("padding_mask", "Tensor?"), Argument("offset_scale", "float")
    return Op("deformable_attention", overload, _VALUE, sizes, *points, *others, *_OPTIONS)


SAMPLE, SAMPLE_BY_TENSOR = _sample_op("default", _INTS), _sample_op("Tensor", _TENSOR)
ATTEND, ATTEND_BY_TENSOR = _attend_op("default", _INTS), _attend_op("Tensor", _TENSOR)
SAMPLES, ATTENDS = (SAMPLE, SAMPLE_BY_TENSOR), (ATTEND, ATTEND_BY_TENSOR)
OPS = SAMPLES + ATTENDS

# A judged call has the same names as its op, in an order of its own.
_SAMPLE_FIELDS = tuple(map(SamplingInputs._fields.index, SAMPLE.names))
_ATTEND_FIELDS = tuple(map(AttentionInputs._fields.index, ATTEND.names))
_SCALE = ATTEND.names.index("offset_scale")


def schemas() -> list[str]:
    """Return the schemas of all ops, as torch has them, without the name of their library."""
    return [text for op in OPS for text in op.schemas]


def run(inputs: Inputs) -> Tensor:
    """Run a judged call through torch's dispatcher."""
    output: Tensor = op_of(inputs).forward(*arguments(inputs))
    return output


def register(op: Op, forward: Callable[..., Any], backward: Callable[..., Any], key: str) -> None:
    """Register the kernels of an op and its backward op for a device, or another dispatch key of torch."""
    LIBRARY.impl(op.name, forward, key)
    LIBRARY.impl(op.backward_name, backward, key)


def register_twin(op: Op, kernel: Callable[..., Any], key: str) -> None:
    """Register the kernel of the twin of an op that takes ints, for a device."""
    LIBRARY.impl(f"{op.name}.judged", kernel, key)


def op_of(inputs: Inputs) -> Op:
    """Return the op of a judged call."""
    by_ints, by_tensor = SAMPLES if isinstance(inputs, SamplingInputs) else ATTENDS
    return by_tensor if isinstance(inputs.spatial_shapes, Tensor) else by_ints


def sample_of(sizes: Any) -> Op:
    """Return the classic op that takes sizes as these are."""
    return SAMPLE_BY_TENSOR if isinstance(sizes, Tensor) else SAMPLE


def arguments(inputs: Inputs) -> list[Any]:
    """Return a judged call as the arguments of its op."""
    if isinstance(inputs, SamplingInputs):
        args: list[Any] = [inputs[i] for i in _SAMPLE_FIELDS]
    else:
        args = [inputs[i] for i in _ATTEND_FIELDS]
        args[_SCALE] = float(args[_SCALE])
    if not isinstance(args[SIZES], Tensor):
        args[SIZES] = flat(args[SIZES])
    return args


def judged_options(inputs: Inputs) -> list[Any]:
    """Return what the twin of an op takes after the tensors, of a judged call whose sizes are ints."""
    call = [int(inputs.interpolation == "nearest"), int(inputs.padding_mode == "border")]
    for (H, W), P in zip(inputs.spatial_shapes, inputs.num_points, strict=True):
        call += (H, W, P)
    return [float(inputs.offset_scale), call] if isinstance(inputs, AttentionInputs) else [call]


def arguments_of_twin(op: Op, args: Sequence[Any]) -> list[Any]:
    """Return the arguments of a twin as those of its op."""
    *given, (nearest, border, *rows) = args
    tensors = given[: len(op.tensors)]
    value, *references, points, weights = tensors[:4] if op in ATTENDS else tensors
    points = points.flatten(3, 4) if points.ndim == 6 else points
    weights = weights.flatten(3, 4) if weights.ndim == 5 else weights
    references = [each.unsqueeze(2) if each.ndim == 3 else each for each in references]
    sizes = [size for i in range(0, len(rows), 3) for size in rows[i : i + 2]]
    options = "nearest" if nearest else "bilinear", "border" if border else "zeros"
    return [value, sizes, *references, points, weights, *given[4:], rows[2::3], *options]


def flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Return pairs (H, W) as the flat list that an op takes."""
    return [size for shape in shapes for size in shape]


def sizes_of(sizes: Sizes) -> Pairs | Tensor:
    """Return the sizes that an op takes as pairs (H, W), or as the tensor that they are."""
    return sizes if isinstance(sizes, Tensor) else tuple(zip(sizes[::2], sizes[1::2], strict=True))
