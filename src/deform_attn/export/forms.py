"""The forms that deformable attention takes in a file: what each can express, and how a graph's calls become it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deform_attn import reference
from deform_attn.backends import grid_sample
from deform_attn.checks import INTERPOLATIONS, PADDING_MODES, AttentionInputs, SamplingInputs
from deform_attn.export import gather, native, nodes
from deform_attn.messages import fail, shown
from deform_attn.torch_ops import schema

Table = dict[Any, Callable[..., Tensor]]
_OPS = {op.forward: op for op in schema.OPS}


class Form(NamedTuple):
    """A form: the function that writes it, and what it can express.

    `is_plain` is whether it is made of ONNX's own operators, so that any runtime can run it. `attend` writes calls from
    raw offsets and logits; without it they are written as the locations and weights that they mean.
    """

    sample: Callable[..., Tensor]
    is_plain: bool
    interpolations: Sequence[str] = ("bilinear",)
    padding_modes: Sequence[str] = ("zeros",)
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16)
    attend: Callable[[AttentionInputs], Tensor] | None = None

    @property
    def runs_here(self) -> bool:
        """Whether ONNX Runtime runs it, with the operators of deform-attn or without."""
        return self.is_plain or self.attend is not None

    def reasons_against(self, interpolation: str, padding_mode: str, dtypes: set[torch.dtype]) -> list[str]:
        """Return what such a call has that this form has not."""
        reasons = []
        if interpolation not in self.interpolations:
            reasons.append(f"interpolation {interpolation!r}")
        if padding_mode not in self.padding_modes:
            reasons.append(f"padding_mode {padding_mode!r}")
        reasons += [f"tensors of {str(d).removeprefix('torch.')}" for d in dtypes if d not in self.dtypes]
        return reasons


_ALL = INTERPOLATIONS, PADDING_MODES, (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FORMS = {
    "gridsample": Form(grid_sample.in_graph, True, *_ALL),
    "gather": Form(gather.sample, True, *_ALL),
    "native": Form(native.sample, False, *_ALL, attend=native.attend),
    "tensorrt": Form(nodes.tensorrt, False),
    "mmdeploy": Form(nodes.mmdeploy, False),
}


def named(name: Any) -> Form:
    """Return the form of this name."""
    if not isinstance(name, str) or name not in FORMS:
        fail(
            "form", "one of " + ", ".join(map(repr, FORMS)), shown(name), "docs/onnx.md says which runtime takes which."
        )
    return FORMS[name]


class Writing(TorchFunctionMode):
    """Within the block, a call of the ops that is traced becomes what the form of this name writes instead.

    Raises:
        ValueError: in a call that the form cannot express.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.name, self.table, self.calls = name, decompositions(name, **options), 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (op := _OPS.get(func)) is None:
            return func(*args, **kwargs or {})
        _judge(self.name, op, args)
        self.calls += 1
        return self.table[func](*args)

    def check(self) -> None:
        """Judge that there was a call."""
        if not self.calls:
            expected = "a model that calls deform_attn, or one that deform_attn.patch has changed"
            fix = "Call deform_attn.patch(model) first, and export outside of use_backend."
            fail("model", expected, "one whose graph has no such call", fix)


def _judge(name: str, op: schema.Op, args: Sequence[Any]) -> None:
    form = FORMS[name]
    dtypes = {arg.dtype for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()}
    options = op.option("interpolation", args), op.option("padding_mode", args)
    if reasons := form.reasons_against(*options, dtypes):
        plain = " or ".join(repr(other) for other, of in FORMS.items() if of.is_plain)
        fail("form", f"one that can express {' and '.join(reasons)}", repr(name), f"Use {plain}.")


def decompositions(name: str, **options: Any) -> Table:
    """Return, for each op, what stands for it in the form of this name; `options` are those of the form."""
    form = FORMS[name]
    sample = functools.partial(form.sample, **options)
    samples = {op.forward: functools.partial(_sample, sample) for op in schema.SAMPLES}
    attend = form.attend or functools.partial(_through_locations, sample)
    return samples | {op.forward: functools.partial(_attend, attend) for op in schema.ATTENDS}


def _sample(
    sample: Callable[[SamplingInputs], Tensor],
    value: Tensor,
    sizes: schema.Sizes,
    locations: Tensor,
    weights: Tensor,
    num_points: Sequence[int],
    interpolation: str,
    padding_mode: str,
) -> Tensor:
    shapes = schema.sizes_of(sizes)
    return sample(SamplingInputs(value, shapes, locations, weights, tuple(num_points), interpolation, padding_mode))


def _attend(
    attend: Callable[[AttentionInputs], Tensor],
    value: Tensor,
    sizes: schema.Sizes,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    mask: Tensor | None,
    offset_scale: float,
    num_points: Sequence[int],
    interpolation: str,
    padding_mode: str,
) -> Tensor:
    points, options = (references, offsets, logits), (offset_scale, interpolation, padding_mode)
    return attend(AttentionInputs(value, schema.sizes_of(sizes), *points, tuple(num_points), mask, *options))


def _through_locations(sample: Callable[[SamplingInputs], Tensor], inputs: AttentionInputs) -> Tensor:
    value, shapes, references, offsets, logits, num_points, mask, offset_scale, interpolation, padding_mode = inputs
    points = references, offsets, logits
    dtype = reference.compute_dtype(value, *points)
    locations, weights = reference.sampling(shapes, *points, num_points, offset_scale, dtype)
    if mask is not None:
        value = value.masked_fill(mask[:, :, None, None], 0)
    return sample(SamplingInputs(value, shapes, locations, weights, num_points, interpolation, padding_mode))
