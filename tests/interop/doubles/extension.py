"""The compiled extensions' op in torch: both directions, in the original's form and in mmcv's."""

import torch
from doubles.parts import read_by_level


def ms_deform_attn_forward(value, spatial_shapes, level_start_index, sampling_loc, attn_weight, im2col_step):
    return read_by_level(value, spatial_shapes, sampling_loc, attn_weight)


def ms_deform_attn_backward(
    value, spatial_shapes, level_start_index, sampling_loc, attn_weight, grad_output, im2col_step
):
    """Return the three gradients, as the extension of the original does."""
    with torch.enable_grad():
        tensors = [tensor.detach().requires_grad_() for tensor in (value, sampling_loc, attn_weight)]
        output = read_by_level(tensors[0], spatial_shapes, *tensors[1:])
    return torch.autograd.grad(output, tensors, grad_output)


class Filling:
    """The extension of mmcv: its backward writes the gradients where it is told and returns nothing."""

    @staticmethod
    def ms_deform_attn_forward(*arguments, im2col_step):
        return ms_deform_attn_forward(*arguments, im2col_step)

    @staticmethod
    def ms_deform_attn_backward(*arguments, im2col_step):
        *arguments, of_value, of_locations, of_weights = arguments
        gradients = ms_deform_attn_backward(*arguments, im2col_step)
        for target, gradient in zip((of_value, of_locations, of_weights), gradients, strict=True):
            target.copy_(gradient)
