"""The op from raw offsets and logits, taken apart: softmax and locations in plain torch, then the classic op.

Slower than the op itself, which stores neither, but what torch must differentiate a second time, or in forward mode,
is then the classic op alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deform_attn import reference
from deform_attn.cells import maps_of
from deform_attn.torch_ops.schema import Sizes, sample_of, sizes_of


def attend(
    value: Tensor,
    shapes: Sizes,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    mask: Tensor | None,
    offset_scale: float,
    num_points: Sequence[int],
    interpolation: str,
    padding_mode: str,
) -> Tensor:
    """Return the output `[N, Q, M*D]`."""
    points = references, offsets, logits
    locations, weights = _sampling(value, shapes, points, num_points, offset_scale)
    args = _masked(value, mask), shapes, locations, weights, num_points, interpolation, padding_mode
    output: Tensor = sample_of(shapes).forward(*args)
    return output


def attend_backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sizes,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    mask: Tensor | None,
    offset_scale: float,
    num_points: Sequence[int],
    interpolation: str,
    padding_mode: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Return the gradients of value, references, offsets and logits; empty where they are not wanted."""
    want_value, want_references, want_offsets, want_logits = wanted
    locations, weights = _sampling(value, shapes, (references, offsets, logits), num_points, offset_scale)
    grad_value, grad_locations, grad_weights = sample_of(shapes).backward(
        grad_output,
        _masked(value, mask),
        shapes,
        locations,
        weights,
        num_points,
        interpolation,
        padding_mode,
        [want_value, want_references or want_offsets, want_logits],
    )
    if want_value:
        grad_value = _masked(grad_value, mask)
    dtype = weights.dtype
    grads = [value.new_empty(0)] * 3
    if want_references:
        passing = _finite(offsets.to(dtype))
        grads[0] = _grad_references(grad_locations, references, passing, num_points, offset_scale)
    if want_offsets:
        step = _steps(shapes, _finite(references.to(dtype)), num_points, offset_scale)  # [T, 2] or [N, Q, 1, T, 2]
        grads[1] = grad_locations * step
    if want_logits:
        pull = weights * grad_weights
        grads[2] = pull - weights * pull.sum(-1, keepdim=True)
    inputs = references, offsets, logits
    return grad_value, *(grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True))


def _sampling(
    value: Tensor,
    shapes: Sizes,
    points: tuple[Tensor, Tensor, Tensor],
    num_points: Sequence[int],
    offset_scale: float,
) -> tuple[Tensor, Tensor]:
    dtype = reference.compute_dtype(value, *points)
    locations, weights = reference.sampling(sizes_of(shapes), *points, num_points, offset_scale, dtype)
    if weights.shape[-1]:
        # In place of torch's softmax, whose tangent (torch 2.13) has no gradient: it writes into what it saved.
        logits = points[-1].to(dtype)
        exponentials = (logits - logits.detach().amax(-1, keepdim=True)).exp()
        weights = reference.normal(exponentials / exponentials.sum(-1, keepdim=True))
    return locations, weights


def _masked(value: Tensor, mask: Tensor | None) -> Tensor:
    return value if mask is None else value.masked_fill(mask[:, :, None, None], 0)


def _finite(tensor: Tensor) -> Tensor:
    """Return offsets or boxes as factors of a gradient: 0 where they are not finite.

    The point then lies at an infinite or NaN location, which gets a gradient of 0; times infinity it would be NaN.
    """
    return tensor.masked_fill(~tensor.isfinite(), 0)


def _steps(shapes: Sizes, references: Tensor, num_points: Sequence[int], offset_scale: float) -> Tensor:
    """Return how far a location moves as its offset does, `[T, 2]` or `[N, Q, 1, T, 2]`."""
    maps = maps_of(sizes_of(shapes), num_points, references)
    if references.shape[-1] == 2:
        return 1 / torch.stack((maps.W, maps.H), -1).clamp(min=1).to(references.dtype)
    return reference.of_points(references[..., 2:], num_points) * offset_scale / maps.P[:, None]


def _grad_references(
    grad_locations: Tensor, references: Tensor, offsets: Tensor, num_points: Sequence[int], offset_scale: float
) -> Tensor:
    """Return the gradient of the references, `[N, Q, L or 1, 2 or 4]`: every point of their level moves with them."""
    counts = list(num_points)
    grad_centres = torch.stack([grad.sum((2, 3)) for grad in grad_locations.split(counts, dim=3)], dim=2)
    grads = [grad_centres]  # [N, Q, L, 2]
    if references.shape[-1] == 4:
        pulls = (grad_locations * offsets).split(counts, dim=3)
        sizes = [pull.sum((2, 3)) * (offset_scale / max(P, 1)) for pull, P in zip(pulls, counts, strict=True)]
        grads.append(torch.stack(sizes, dim=2))
    grad = torch.cat(grads, dim=-1)
    return grad if references.shape[2] == len(counts) else grad.sum(2, keepdim=True)
