"""A patched model on another device: its output and the gradient of the image are those of the stock one on the CPU.

The device is the one that DEFORM_ATTN_TEST_DEVICE names, or else one that is pretended.
"""

import copy

import pytest
import torch

from deform_attn import patch
from tolerances import assert_close


def test_its_output_and_the_gradient_of_the_image_are_those_of_the_stock_model_on_the_cpu(elsewhere):
    pytest.importorskip("transformers")
    import interop_cases

    stock = interop_cases.build("deformable_detr").double()
    inputs = interop_cases.CASES["deformable_detr"].inputs()
    patched = copy.deepcopy(stock)
    assert len(patch(patched).replaced) == len(interop_cases.attentions(stock))
    found = []
    for model, device in ((stock, "cpu"), (patched, elsewhere)):
        image = inputs["pixel_values"].double().to(device).requires_grad_()
        others = {name: tensor.to(device) for name, tensor in inputs.items() if name != "pixel_values"}
        torch.manual_seed(2)
        output = model.to(device)(pixel_values=image, **others).logits
        found.append([output.detach().cpu(), torch.autograd.grad(output.sum(), image)[0].cpu()])
    for actual, expected in zip(found[1], found[0], strict=True):
        assert_close(actual, expected, torch.float64)
