"""The two modules on another device: the output and all gradients are those on the CPU.

The device is the one that DEFORM_ATTN_TEST_DEVICE names, or else one that is pretended.
"""

import copy

import pytest
import torch

from deform_attn import DeformableAttention, MultiScaleDeformableAttention, encoder_reference_points
from tolerances import assert_close

SHAPES = [(7, 11), (4, 6)]
PIXELS = sum(H * W for H, W in SHAPES)
BATCH, QUERIES, CHANNELS = 2, 5, 24


@pytest.mark.parametrize("form", ["single", "multi", "multi, masked", "encoder"])
def test_output_and_all_gradients_are_those_on_the_cpu(form, elsewhere):
    torch.manual_seed(0)
    double = torch.float64
    if form == "single":
        module = DeformableAttention(CHANNELS, num_heads=3, num_points=2).double()
        features = torch.randn(BATCH, CHANNELS, *SHAPES[0], dtype=double)
    else:
        module = MultiScaleDeformableAttention(CHANNELS, num_heads=3, num_levels=len(SHAPES), num_points=2).double()
        features = torch.randn(BATCH, PIXELS, CHANNELS, dtype=double)
    query = torch.randn(BATCH, PIXELS if form == "encoder" else QUERIES, CHANNELS, dtype=double)
    references = torch.rand(BATCH, QUERIES, 2, dtype=double)
    mask = torch.rand(BATCH, PIXELS) < 0.3 if form == "multi, masked" else None
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pull = torch.randn_like(query)
    found = {}
    for device in (torch.device("cpu"), elsewhere):
        there = copy.deepcopy(module).to(device)
        given = [tensor.to(device).requires_grad_() for tensor in (query, features)]
        at = references.to(device)
        if form == "encoder":
            at = encoder_reference_points(SHAPES, torch.ones(BATCH, 2, 2, dtype=double, device=device))
        options = {} if mask is None else {"padding_mask": mask.to(device)}
        output = there(given[0], at, given[1], *([] if form == "single" else [SHAPES]), **options)
        assert output.device.type == device.type
        grads = torch.autograd.grad(output, [*given, *there.parameters()], pull.to(device))
        found[device.type] = [tensor.detach().cpu() for tensor in (output, *grads)]
    for actual, expected in zip(found[elsewhere.type], found["cpu"], strict=True):
        assert_close(actual, expected.double(), torch.float64)
