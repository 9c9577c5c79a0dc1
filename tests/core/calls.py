"""Calls that nothing is wrong with, by form, and what is said of one that differs from them."""

import re

import pytest
import torch

from deform_attn import deformable_attention, multi_scale_deformable_attention

# N = 2, S = 10, M = 3, D = 5, Q = 7, L = 2, P = 4, T = 8
SHAPES = [(2, 3), (4, 1)]
FUSED = "fused"
CLASSIC = "classic"


def valid(form):
    """Return the arguments of a call that nothing is wrong with."""
    if form == FUSED:
        return {
            "value": torch.ones(2, 10, 3, 5),
            "spatial_shapes": SHAPES,
            "reference_points": torch.ones(2, 7, 2, 2),
            "sampling_offsets": torch.ones(2, 7, 3, 2, 4, 2),
            "attention_logits": torch.ones(2, 7, 3, 8),
        }
    return {
        "value": torch.ones(2, 10, 3, 5),
        "spatial_shapes": SHAPES,
        "sampling_locations": torch.ones(2, 7, 3, 2, 4, 2),
        "attention_weights": torch.ones(2, 7, 3, 2, 4),
    }


ENTRY_POINTS = {FUSED: deformable_attention, CLASSIC: multi_scale_deformable_attention}


def refusal(form, **changes):
    """Return the message with which a call is refused that differs from a valid one in `changes`."""
    with pytest.raises((ValueError, TypeError)) as caught:
        ENTRY_POINTS[form](**{**valid(form), **changes})
    assert type(caught.value) in (ValueError, TypeError)
    return str(caught.value)


def check(message, names, *shown):
    """Check that a message names one of the arguments `names` and shows each of the texts `shown`."""
    assert any(re.search(rf"\b{name}\b", message) for name in names), f"names none of {names}: {message}"
    for text in shown:
        assert text in message, f"does not show {text!r}: {message}"


FLAT = {FUSED: {"sampling_offsets": torch.ones(2, 7, 3, 8, 2)}}
FLAT[CLASSIC] = {"sampling_locations": torch.ones(2, 7, 3, 8, 2), "attention_weights": torch.ones(2, 7, 3, 8)}

TENSORS = [(FUSED, name) for name in ("value", "reference_points", "sampling_offsets", "attention_logits")]
TENSORS += [(CLASSIC, name) for name in ("value", "sampling_locations", "attention_weights")]
