"""Code as other projects write it around the compiled extension: what calls the stand-in in these tests."""

import pytest
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import deform_attn.stand_ins

with pytest.warns(deform_attn.stand_ins.StandInWarning):
    import MultiScaleDeformableAttention as extension

SHAPES = [(6, 4), (3, 5)]


class Original(Function):
    """Calls the extension as the original does: all by position, the gradients come back."""

    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
        ctx.im2col_step = im2col_step
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return extension.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        grads = extension.ms_deform_attn_backward(*ctx.saved_tensors, grad_output, ctx.im2col_step)
        grad_value, grad_locations, grad_weights = grads
        return grad_value, None, None, grad_locations, grad_weights, None


class Filling(Function):
    """Calls it as mmcv does: the step by name, the gradients are filled in."""

    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
        ctx.im2col_step = im2col_step
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return extension.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step=im2col_step)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        value, shapes, starts, locations, weights = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
        call = value, shapes, starts, locations, weights, grad_output.contiguous(), *grads
        assert extension.ms_deform_attn_backward(*call, im2col_step=ctx.im2col_step) is None
        return grads[0], None, None, grads[1], grads[2], None


def sizes_and_starts(shapes=SHAPES, dtype=torch.int64):
    sizes = torch.tensor(shapes, dtype=dtype)
    pixels = sizes.prod(1)
    return sizes, pixels.cumsum(0).to(dtype) - pixels


def draw(dtype=torch.float64, points=None, *, D=4, N=2, shapes=SHAPES, seed=0):
    """Return value, locations and weights that want gradients; `points` is the dtype of the last two."""
    generator = torch.Generator().manual_seed(seed)
    S, Q, M, L, P = sum(H * W for H, W in shapes), 7, 2, len(shapes), 3

    def uniform(*size):
        return torch.rand(size, generator=generator, dtype=torch.float64)

    value, locations, weights = uniform(N, S, M, D) - 0.5, uniform(N, Q, M, L, P, 2) * 1.4 - 0.2, uniform(N, Q, M, L, P)
    points = dtype if points is None else points
    dtypes = dtype, points, points
    return [t.to(d).requires_grad_() for t, d in zip((value, locations, weights), dtypes, strict=True)]


def call(function, tensors, shapes=SHAPES, step=64, dtype=torch.int64):
    value, locations, weights = tensors
    return function.apply(value, *sizes_and_starts(shapes, dtype), locations, weights, step)
