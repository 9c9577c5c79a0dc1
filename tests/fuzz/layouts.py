"""Layouts: the same numbers elsewhere in memory, and two that have other numbers."""

import torch


def contiguous(tensor):
    return tensor.contiguous()


def spread(tensor):
    """Leave gaps of NaN (or True) between the elements."""
    wide = torch.full((*tensor.shape, 3), True if tensor.dtype == torch.bool else float("nan"), dtype=tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]


def reversed_axes(tensor):
    """Let the first axis be the fastest in memory."""
    axes = tuple(range(tensor.dim()))[::-1]
    return tensor.permute(axes).contiguous().permute(axes)


def channels_last(tensor):
    """Let the second axis be the fastest in memory."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def sliced(tensor):
    """Cut it out of a larger one, at an offset in memory."""
    wide = tensor.new_zeros(tensor.shape[0] + 2, tensor.shape[1] + 3, *tensor.shape[2:])
    wide[1:-1, 2:-1] = tensor
    return wide[1:-1, 2:-1]


def negative(tensor):
    """Let a view negate what is in memory."""
    return tensor if tensor.dtype == torch.bool else torch._neg_view(-tensor)


def expanded(tensor):
    """Repeat the first entry of the last axis but one, which is once in memory."""
    return tensor[..., :1, :].expand_as(tensor) if tensor.shape[-2] else tensor


def without_memory(tensor):
    """Return zeros of which there is only the shape."""
    return torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)


SAME_NUMBERS = contiguous, contiguous, spread, reversed_axes, channels_last, sliced, negative
OTHER_NUMBERS = expanded, without_memory
