"""The compiled kernels against reference.py: the comparison, and locations and pixels that are hard on them."""

import torch

from deform_attn import deformable_attention, multi_scale_deformable_attention
from tolerances import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WIDE = {torch.float64: torch.float64}  # the others are computed in float32
BAD = [float("nan"), float("inf"), -float("inf")]


def differentiable(tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def compare(function, tensors, dtype, seed=0, backend="native", **options):
    """Compare output and gradients with those of the reference, from the same numbers in dtypes that round nothing.

    With the narrow ones on both sides, two right results could lie a whole rounding step apart.
    """
    actual = differentiable(tensors)
    wide = differentiable([tensor.to(WIDE.get(tensor.dtype, torch.float32)) for tensor in tensors])
    output = function(*actual, backend=backend, **options)
    wanted = function(*wide, backend="reference", **options)
    generator = torch.Generator().manual_seed(seed)
    grad_output = torch.randn(output.shape, generator=generator).to(dtype)
    assert_close(output, wanted, dtype)
    grads = torch.autograd.grad(output, actual, grad_output)
    grads_wanted = torch.autograd.grad(wanted, wide, grad_output.to(wanted.dtype))
    for grad, grad_wanted, tensor in zip(grads, grads_wanted, tensors, strict=True):
        assert_close(grad, grad_wanted, tensor.dtype)


def classic(shapes):
    return lambda value, locations, weights, **options: multi_scale_deformable_attention(
        value, shapes, locations, weights, **options
    )


def fused(shapes):
    return lambda value, references, offsets, logits, **options: deformable_attention(
        value, shapes, references, offsets, logits, **options
    )


def spread_locations(generator, N, Q, M, shapes, counts):
    """Return `[N, Q, M, T, 2]`: about the map, far off it, on pixel centres and on the edges of pixels and maps."""
    levels = []
    for (H, W), P in zip(shapes, counts, strict=True):
        size = torch.tensor([max(W, 1), max(H, 1)])
        draw = torch.rand(N, Q, M, P, 2, generator=generator) * 1.6 - 0.3
        kind = torch.randint(0, 8, draw.shape, generator=generator)
        pixel = (draw * size).floor()
        draw = torch.where(kind == 0, (pixel + 0.5) / size, draw)
        draw = torch.where(kind == 1, pixel / size, draw)
        draw = torch.where(kind == 2, draw * 1e5, draw)
        levels.append(draw)
    return torch.cat(levels, dim=3)


def poisoned(tensor, generator, rate):
    bad = torch.tensor(BAD, dtype=tensor.dtype)[torch.randint(0, 3, tensor.shape, generator=generator)]
    return torch.where(torch.rand(tensor.shape, generator=generator) < rate, bad, tensor)
