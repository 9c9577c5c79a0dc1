"""The two functions of the compiled extensions, as the originals and mmcv's call them.

Zhu et al. 2020, https://arxiv.org/abs/2010.04159; the op is `deform_attn.multi_scale_deformable_attention`. A caller's
`autograd.Function` stands around the originals, which know nothing of autograd; called without one, the forward pass is
recorded as any op of torch. Letters and edges: docs/conventions.md.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deform_attn import checks, functional
from deform_attn.backends import registry
from deform_attn.functional import multi_scale_deformable_attention
from deform_attn.messages import dtype_text, fail, shape_text
from deform_attn.stand_ins.level_starts import judged_sizes
from deform_attn.tensor_checks import dense, is_under_autocast
from deform_attn.torch_ops import meant, schema


class Gradients(NamedTuple):
    """The gradients, in the order in which the originals return them."""

    grad_value: Tensor
    grad_sampling_loc: Tensor
    grad_attn_weight: Tensor


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: Any,
) -> Tensor:
    """Read `value` at ready-made locations and add up by ready-made weights.

    Args:
        value: the maps of all levels, one after the other, `[N, S, M, D]`.
        spatial_shapes: integer tensor `[L, 2]`, (H, W) of each level.
        level_start_index: integer tensor `[L]`. Levels must be without gaps. This is checked where it and the sizes are
            on the CPU, outside of a graph; elsewhere it is not read.
        sampling_loc: `[N, Q, M, L, P, 2]` as (x, y), [0, 1] spans the map.
        attn_weight: `[N, Q, M, L, P]`.
        im2col_step: not needed.

    Returns:
        `[N, Q, M*D]` in value's dtype, under autocast too. Coordinates and sums are float32, or float64 if an input is.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> from deform_attn.stand_ins.ops import ms_deform_attn_forward
        >>> shapes, starts = torch.tensor([[12, 18], [6, 9]]), torch.tensor([0, 12 * 18])
        >>> value = torch.randn(2, 12 * 18 + 6 * 9, 4, 8)
        >>> locations, weights = torch.rand(2, 5, 4, 2, 3, 2), torch.rand(2, 5, 4, 2, 3)
        >>> ms_deform_attn_forward(value, shapes, starts, locations, weights, 64).shape
        torch.Size([2, 5, 32])
    """
    sizes = judged_sizes(spatial_shapes, level_start_index)
    with in_own_dtype(value):
        return multi_scale_deformable_attention(value, sizes, sampling_loc, attn_weight)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Any = None,
    grad_sampling_loc: Tensor | None = None,
    grad_attn_weight: Tensor | None = None,
    im2col_step: Any = None,
) -> Gradients | None:
    """Return the gradients of value, locations and weights, or fill those that are passed in.

    The original is called with `(..., grad_output, im2col_step)` and returns three tensors. mmcv's is called with
    `(..., grad_output, grad_value, grad_sampling_loc, grad_attn_weight, im2col_step)`, fills these three, and returns
    None.

    Args:
        value: as in `ms_deform_attn_forward`, like the next four.
        spatial_shapes: as there.
        level_start_index: as there.
        sampling_loc: as there.
        attn_weight: as there.
        grad_output: `[N, Q, M*D]`.
        grad_value: a tensor like value to fill. By position the original passes im2col_step here.
        grad_sampling_loc: a tensor like sampling_loc to fill.
        grad_attn_weight: a tensor like attn_weight to fill.
        im2col_step: not needed.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
    """
    given = grad_value, grad_sampling_loc, grad_attn_weight
    if not isinstance(grad_value, Tensor) and im2col_step is None:
        given = None, grad_sampling_loc, grad_attn_weight  # what came was the original's im2col_step
    to_fill = [tensor for tensor in given if isinstance(tensor, Tensor)]
    if len(to_fill) not in (0, 3) or len(to_fill) != sum(each is not None for each in given):
        expected = "grad_value, grad_sampling_loc and grad_attn_weight as tensors, or none of them"
        got = ", ".join(type(each).__name__ for each in given)
        fail("ms_deform_attn_backward", expected, got, "Pass all three to have them filled.", TypeError)
    if torch.compiler.is_compiling():
        inputs = _judged_before(value, spatial_shapes, sampling_loc, attn_weight)
    else:
        dense("grad_output", grad_output)
        sizes = judged_sizes(spatial_shapes, level_start_index)
        inputs = checks.sampling_inputs(value, sizes, sampling_loc, attn_weight, None, "bilinear", "zeros")
    shapes = value.shape, sampling_loc.shape, attn_weight.shape
    with torch.no_grad():  # as of a compiled extension, of which torch records nothing
        grads = Gradients(*map(Tensor.reshape, _gradients(inputs, grad_output), shapes))
    if not to_fill:
        return grads
    for name, target, grad in zip(Gradients._fields, to_fill, grads, strict=True):
        if target.shape != grad.shape:  # which copy_ would spread over it, if it can
            fail(name, shape_text(grad.shape), shape_text(target.shape), "Give one of the shape of its input.")
        if target.dtype != grad.dtype:
            got = dtype_text(target)
            fail(name, f"a tensor of dtype {dtype_text(grad)}", got, "Give one of the dtype of its input.", TypeError)
    for target, grad in zip(to_fill, grads, strict=True):
        target.copy_(grad)
    return None


def in_own_dtype(value: Any) -> AbstractContextManager[Any]:
    """Return the context in which `value` keeps its dtype: autocast does not reach into a compiled extension."""
    if isinstance(value, Tensor) and is_under_autocast(value):
        return torch.autocast(value.device.type, enabled=False)
    return nullcontext()


def _judged_before(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> checks.SamplingInputs:
    """Return a call in normal form, where torch.compile traces a backward pass.

    The forward pass judged it, and not all that the checks look at may be asked for there.
    """
    L, P = weights.shape[3:]
    return checks.SamplingInputs(
        value, sizes, locations.flatten(3, 4), weights.flatten(3), (P,) * L, "bilinear", "zeros"
    )


def _gradients(inputs: checks.SamplingInputs, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of value, locations and weights, as these are in a judged call."""
    chosen = registry.select(inputs, functional._name(None))
    if not chosen.is_registered:
        return _gradients_by_autograd(inputs, grad_output)
    with meant.meaning(chosen.name) if chosen.only_by_name(inputs) else nullcontext():
        grads = schema.op_of(inputs).backward(grad_output, *schema.arguments(inputs), [True, True, True])
    return tuple(grads)


def _gradients_by_autograd(inputs: checks.SamplingInputs, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Return them where no kernel has them: the forward pass runs once more, in torch's own ops."""
    leaves = [
        tensor.detach().requires_grad_()
        for tensor in (inputs.value, inputs.sampling_locations, inputs.attention_weights)
    ]
    value, locations, weights = leaves
    with torch.enable_grad(), in_own_dtype(value):
        output = multi_scale_deformable_attention(
            value, inputs.spatial_shapes, locations, weights, num_points=inputs.num_points
        )
    return torch.autograd.grad(output, leaves, grad_output)
