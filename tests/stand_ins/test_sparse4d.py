"""Sparse4D's function: each camera's picture read at the points that fall into it, scale by scale, group by group."""

import inspect

import pytest
import torch
from torch.nn import functional as F

from deform_attn.stand_ins.sparse4d import DeformableAggregationFunction, deformable_aggregation_function
from tolerances import assert_close

N, Q, P, V, L, G, D = 2, 5, 7, 3, 2, 4, 3
SCALES = [(6, 9), (3, 5)]
SIZES = torch.tensor([SCALES] * V)
PIXELS = SIZES.prod(-1).flatten()
STARTS = (PIXELS.cumsum(0) - PIXELS).view(V, L)


def draw(dtype=torch.float64):
    torch.manual_seed(0)
    features = torch.randn(N, int(PIXELS.sum()), G * D)
    location = torch.rand(N, Q, P, V, 2) * 1.4 - 0.2
    location[0, 0, 0, 0, 0], location[0, 0, 1, 0, 1] = 0.0, 1.0  # on the border, which counts as beyond it
    weights = torch.rand(N, Q, P, V, L, G)
    return [tensor.to(dtype).requires_grad_() for tensor in (features, location, weights)]


def expected_of(features, location, weights):
    """Return the same by torch's grid_sample, one call for each picture."""
    output = 0
    inside = ((location > 0) & (location < 1)).all(-1)  # [N, Q, P, V]
    for v in range(V):
        for s, (H, W) in enumerate(SCALES):
            picture = features[:, int(STARTS[v, s]) :][:, : H * W].transpose(1, 2).unflatten(-1, (H, W))
            read = F.grid_sample(picture, 2 * location[:, :, :, v] - 1, align_corners=False)  # [N, C, Q, P]
            read = read.permute(0, 2, 3, 1).unflatten(-1, (G, D)) * inside[..., v, None, None]
            output = output + (read * weights[:, :, :, v, s, :, None]).sum(2).flatten(2)
    return output


def test_it_reads_what_grid_sample_reads_inside_of_each_picture_and_nothing_beyond():
    tensors = draw()
    features, location, weights = tensors
    output = deformable_aggregation_function(features, SIZES, STARTS, location, weights)
    expected = expected_of(*tensors)
    assert_close(output, expected, torch.float64)
    grad_output = torch.randn_like(output)
    for grad, wanted in zip(
        torch.autograd.grad(output, tensors, grad_output),
        torch.autograd.grad(expected, tensors, grad_output),
        strict=True,
    ):
        assert wanted.abs().max() > 0.1
        assert_close(grad, wanted, torch.float64)
    beyond = ((location <= 0) | (location >= 1)).any(-1)
    assert beyond[0, 0, :2, 0].all()
    assert (
        torch.autograd.grad(
            deformable_aggregation_function(features, SIZES, STARTS, location, weights).sum(), location
        )[0][beyond]
        .eq(0)
        .all()
    )


def test_the_signature_is_that_of_sparse4d_and_the_output_float32():
    assert list(inspect.signature(deformable_aggregation_function).parameters) == [
        *("feature_maps", "spatial_shape", "scale_start_index", "sampling_location", "weights"),
    ]
    features, location, weights = draw(torch.float16)
    call = features, SIZES.int(), STARTS.int(), location, weights
    output = DeformableAggregationFunction.apply(*call)
    assert output.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(deformable_aggregation_function(*call), output)
    assert_close(output, expected_of(*(tensor.double() for tensor in (features, location, weights))), torch.float32)
    assert [grad.dtype for grad in torch.autograd.grad(output.sum(), (features, location, weights))] == [
        torch.float16
    ] * 3


def test_arguments_that_do_not_fit_are_refused_by_name():
    features, location, weights = draw()
    for name, call in {
        "scale_start_index": (features, SIZES, STARTS + 1, location, weights),
        "spatial_shape": (features, SIZES[:, :1], STARTS, location, weights),
        "sampling_location": (features, SIZES, STARTS, location[:, :, :3], weights),
        "weights": (features, SIZES, STARTS, location, weights[0]),
        "feature_maps": (features[..., :11], SIZES, STARTS, location, weights),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: expected "):
            deformable_aggregation_function(*call)


def test_it_compiles_to_one_graph():
    features, location, weights = draw()
    call = features, SIZES, STARTS, location, weights
    compiled = torch.compile(deformable_aggregation_function, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*call), deformable_aggregation_function(*call).detach(), torch.float64)
