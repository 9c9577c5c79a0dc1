"""The multi-scale module against the modules in transformers: same weights, same output, same gradients."""

import pytest
import torch
from transformers import DeformableDetrConfig, RTDetrV2Config
from transformers.models.deformable_detr import modeling_deformable_detr as deformable_detr
from transformers.models.rt_detr_v2 import modeling_rt_detr_v2 as rt_detr_v2

from deform_attn import MultiScaleDeformableAttention, encoder_reference_points

SHAPES = [(7, 11), (4, 6), (3, 2)]
PIXELS = sum(H * W for H, W in SHAPES)
BATCH, QUERIES, CHANNELS, HEADS = 2, 13, 32, 4
POINTS = 2  # rt_detr_v2 keeps 1 / POINTS in float32 even in a float64 module: let it be exact
# Both sides round once or twice at each of about a hundred additions; in float64 the same leaves 1e-13.
RELATIVE = {torch.float64: 1e-12, torch.float32: 5e-6}


def deformable_detr_module():
    config = DeformableDetrConfig(d_model=CHANNELS, num_feature_levels=len(SHAPES), disable_custom_kernels=True)
    return deformable_detr.DeformableDetrMultiscaleDeformableAttention(config, num_heads=HEADS, n_points=POINTS)


def rt_detr_v2_module():
    config = RTDetrV2Config(
        d_model=CHANNELS, decoder_attention_heads=HEADS, decoder_n_points=POINTS, decoder_n_levels=len(SHAPES)
    )
    return rt_detr_v2.RTDetrV2MultiscaleDeformableAttention(config)


CASES = {
    "points on every level": (deformable_detr_module, (len(SHAPES), 2)),
    "boxes on every level": (deformable_detr_module, (len(SHAPES), 4)),
    "one box for all levels": (rt_detr_v2_module, (1, 4)),
}


def twins(build, dtype):
    """Return a module of theirs and one of ours with the same redrawn weights."""
    torch.manual_seed(0)
    theirs = build().to(dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    ours = MultiScaleDeformableAttention(CHANNELS, num_heads=HEADS, num_levels=len(SHAPES), num_points=POINTS).to(dtype)
    parameters = {name: p for name, p in theirs.state_dict().items() if name != "n_points_scale"}
    ours.load_state_dict(parameters)
    return theirs, ours


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("dtype", RELATIVE, ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_output_and_all_gradients_equal_those_of_transformers(case, dtype, masked):
    build, reference_shape = CASES[case]
    theirs, ours = twins(build, dtype)
    query = torch.randn(BATCH, QUERIES, CHANNELS, dtype=dtype, requires_grad=True)
    references = torch.rand(BATCH, QUERIES, *reference_shape, dtype=dtype, requires_grad=True)
    features = torch.randn(BATCH, PIXELS, CHANNELS, dtype=dtype, requires_grad=True)
    padding = torch.rand(BATCH, PIXELS) < 0.3 if masked else None
    tensors = (query, references, features)

    expected, _ = theirs(
        query,
        attention_mask=None if padding is None else ~padding,
        encoder_hidden_states=features,
        reference_points=references,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
        level_start_index=None,
    )
    actual = ours(query, references, features, SHAPES, padding_mask=padding)
    # The comparison means something only if the op moves the output.
    assert relative_error(ours.output_proj.bias.expand_as(actual), expected) > 0.1
    assert relative_error(actual, expected) < RELATIVE[dtype]

    direction = torch.randn_like(expected)
    names = ["query", "reference_points", "features", *dict(ours.named_parameters())]
    expected_gradients = torch.autograd.grad(expected, (*tensors, *theirs.parameters()), direction)
    actual_gradients = torch.autograd.grad(actual, (*tensors, *ours.parameters()), direction)
    assert [n for n, _ in theirs.named_parameters()] == [n for n, _ in ours.named_parameters()]
    for name, ours_, theirs_ in zip(names, actual_gradients, expected_gradients, strict=True):
        assert theirs_.norm() > 0, name
        assert relative_error(ours_, theirs_) < 4 * RELATIVE[dtype], name


def test_encoder_reference_points_equal_those_of_transformers():
    torch.manual_seed(0)
    ratios = 0.5 + 0.5 * torch.rand(BATCH, len(SHAPES), 2)
    expected = deformable_detr.DeformableDetrEncoder.get_reference_points(SHAPES, ratios, device="cpu")
    torch.testing.assert_close(encoder_reference_points(SHAPES, ratios), expected)
