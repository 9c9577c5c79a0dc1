"""The two ops as torch knows them, `torch.ops.deform_attn.*`: their signatures, and the shapes of what they return.

A backend with compiled kernels registers them for its device with `LIBRARY.impl`. What torch does around a kernel is
registered beside this file: autograd.py (backward and forward), vmap.py, autocast.py, flops.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs

LIBRARY = torch.library.Library("deform_attn", "DEF")
NAMES = ("multi_scale_deformable_attention", "deformable_attention")

_LEVELS = "SymInt[] num_points, str interpolation, str padding_mode"
_SAMPLE = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
_ATTEND = (
    "Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
    "Tensor? padding_mask, float offset_scale"
)
# spatial_shapes are flat: H_1, W_1, H_2, ... Gradients that are not wanted come back empty.
LIBRARY.define(f"multi_scale_deformable_attention({_SAMPLE}, {_LEVELS}) -> Tensor")
LIBRARY.define(f"deformable_attention({_ATTEND}, {_LEVELS}) -> Tensor")
LIBRARY.define(
    "multi_scale_deformable_attention_backward"
    f"(Tensor grad_output, {_SAMPLE}, {_LEVELS}, bool[] wanted) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "deformable_attention_backward"
    f"(Tensor grad_output, {_ATTEND}, {_LEVELS}, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)"
)
SAMPLE = torch.ops.deform_attn.multi_scale_deformable_attention.default
ATTEND = torch.ops.deform_attn.deformable_attention.default
SAMPLE_BACKWARD = torch.ops.deform_attn.multi_scale_deformable_attention_backward.default
ATTEND_BACKWARD = torch.ops.deform_attn.deformable_attention_backward.default


def sample(inputs: SamplingInputs) -> Tensor:
    """Run the classic op through torch's dispatcher."""
    return SAMPLE(*arguments(inputs))


def attend(inputs: AttentionInputs) -> Tensor:
    """Run the op from raw offsets and logits through torch's dispatcher."""
    return ATTEND(*arguments(inputs))


def arguments(inputs: Inputs) -> list[Any]:
    """Return a judged call as the arguments of its op."""
    if isinstance(inputs, SamplingInputs):
        value, shapes, locations, weights, *options = inputs
        return [value, flat(shapes), locations, weights, *options]
    value, shapes, references, offsets, logits, num_points, mask, offset_scale, *modes = inputs
    return [value, flat(shapes), references, offsets, logits, mask, float(offset_scale), num_points, *modes]


def flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Return pairs (H, W) as the flat list that an op takes."""
    return [size for shape in shapes for size in shape]


def pairs(shapes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the flat list that an op takes as pairs (H, W)."""
    return list(zip(shapes[::2], shapes[1::2], strict=True))


def _fake(value: Tensor, shapes: list[int], points: Tensor, *rest: Any) -> Tensor:
    N, _, M, D = value.shape
    return value.new_empty((N, points.shape[1], M * D))


def _fake_backward(grad_output: Tensor, value: Tensor, shapes: list[int], *rest: Any) -> tuple[Tensor, ...]:
    wanted = rest[-1]
    tensors = (value, *rest[: len(wanted) - 1])
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if want else tensor.new_empty(0)
        for tensor, want in zip(tensors, wanted, strict=True)
    )


for _name in NAMES:
    torch.library.register_fake(f"deform_attn::{_name}", _fake, lib=LIBRARY)
    torch.library.register_fake(f"deform_attn::{_name}_backward", _fake_backward, lib=LIBRARY)
