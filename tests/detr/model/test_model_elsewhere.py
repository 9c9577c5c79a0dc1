"""The detector on another device: its losses and gradients are those on the CPU.

The device is the one that DEFORM_ATTN_TEST_DEVICE names, or else one that is pretended.
"""

import copy
from dataclasses import replace

import pytest
import torch
from test_detr_model import KINDS, redrawn, sample, tiny

from deform_attn.detr.config.detector import AttentionKind, LossConfig
from deform_attn.detr.data.batch import collate
from deform_attn.detr.training.criterion import Criterion


@pytest.mark.parametrize("attention", KINDS)
def test_losses_and_gradients_are_those_on_the_cpu(attention: AttentionKind, elsewhere: torch.device) -> None:
    model = redrawn(tiny(attention)).double()
    batch = collate([sample(96, 64), sample(57, 90, boxes=3)])
    images = batch.images.double()
    found = []
    for device in (torch.device("cpu"), elsewhere):
        there = copy.deepcopy(model).to(device)
        samples = [
            replace(one, boxes=one.boxes.double().to(device), labels=one.labels.to(device)) for one in batch.samples
        ]
        loss = Criterion(LossConfig())(there(images.to(device), batch.padding_mask.to(device)), samples).total
        assert loss.device.type == device.type
        found.append([loss.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(loss, list(there.parameters())))])
    for actual, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
