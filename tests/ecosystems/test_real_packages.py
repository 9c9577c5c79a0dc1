"""What packages do beyond their models: an exported rfdetr, and mmcv's function with the stand-in of its extension."""

import pytest
import torch
from real_models import rfdetr_nano

from deform_attn import patch


def test_an_attention_that_rfdetr_has_exported_is_left_with_its_reason():
    model = rfdetr_nano()
    exported, other = (layer.cross_attn for layer in model.transformer.decoder.layers)
    exported.export()
    report = patch(model)
    assert [(model.get_submodule(row.name), "export" in row.reason) for row in report.left] == [(exported, True)]
    assert [model.get_submodule(row.name) for row in report.replaced] == [other]
    with pytest.raises(ValueError, match="export"):
        patch(exported)


def test_the_autograd_function_of_mmcv_runs_with_the_stand_in():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    torch.manual_seed(0)
    shapes = torch.tensor([(4, 5), (2, 3)])
    value = torch.randn(2, 26, 2, 4, dtype=torch.float64, requires_grad=True)
    locations = torch.rand(2, 3, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    outputs = [
        MultiScaleDeformableAttnFunction.apply(value, shapes, torch.tensor([0, 20]), locations, weights, 64),
        multi_scale_deformable_attn_pytorch(value, shapes, locations, weights),
    ]
    torch.testing.assert_close(*outputs)
    direction = torch.randn_like(outputs[0])
    actual, expected = (torch.autograd.grad(output, (value, locations, weights), direction) for output in outputs)
    for ours, theirs in zip(actual, expected, strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs)
