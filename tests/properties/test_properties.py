"""Properties: random sizes and locations, far off the map, on centres and edges, not finite, against the oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle
from cases import (
    Case,
    grad_output_of,
    inputs_of,
    oracle_fused,
    oracle_fused_gradients,
)
from deform_attn import deformable_attention, multi_scale_deformable_attention
from draws import draws
from every_backend import BACKENDS, call_on
from tolerances import assert_close

DTYPES = st.sampled_from([torch.float64, torch.float32])
MODES = st.tuples(st.sampled_from(["bilinear", "nearest"]), st.sampled_from(["zeros", "border"]))
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
PLENTY = draws(50)


@st.composite
def classic_sizes(draw, side):
    """Draw the shapes of one to three levels, a count of points for each, and N, Q, M, D."""
    shapes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=3))
    points = draw(st.lists(st.integers(0, 3), min_size=len(shapes), max_size=len(shapes)))
    sizes = [draw(st.integers(1, largest)) for largest in (2, 3, 3, 4)]
    return shapes, points, *sizes


def draw_locations(draw, position, shapes, points, n, q, m):
    """Draw `[N][Q][M][T][2]`; `position(size)` is the strategy along one axis of a level."""
    levels = oracle.level_of_each_point(points)

    def location(level):
        height, width = shapes[level]
        return [draw(position(width)), draw(position(height))]

    return [[[[location(level) for level in levels] for _ in range(m)] for _ in range(q)] for _ in range(n)]


def classic_tensors(value, locations, weights, shapes, points, sizes, dtype):
    n, q, m, d = sizes
    sequence, total = sum(height * width for height, width in shapes), sum(points)
    return [
        torch.tensor(value, dtype=dtype).reshape(n, sequence, m, d).requires_grad_(),
        torch.tensor(locations, dtype=dtype).reshape(n, q, m, total, 2).requires_grad_(),
        torch.tensor(weights, dtype=dtype).reshape(n, q, m, total).requires_grad_(),
    ]


def randn(generator, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def position_anywhere(interpolation):
    """Return a strategy of positions: about the map, far off it, not finite; nearest keeps off the edges of pixels."""
    special = st.sampled_from([math.nan, math.inf, -math.inf, 1e9, -1e9, 3e9, -1e19, 1e30, -3e38])
    about = st.floats(-0.5, 1.5, width=32)
    far = st.floats(-1e4, 1e4, width=32)

    def off_the_edges(size):
        def clear(at):
            pixel = at * size
            return not math.isfinite(pixel) or abs(pixel) > 1e4 or abs(pixel - round(pixel)) > 1e-5 * (1 + abs(pixel))

        either = st.one_of(about, far, about, special)
        return either.filter(clear) if interpolation == "nearest" else either

    return off_the_edges


@EVERY_BACKEND
@PLENTY
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), modes=MODES, dtype=DTYPES)
def test_any_location_of_any_size_of_map_reads_what_the_oracle_reads(backend, data, seed, modes, dtype):
    shapes, points, n, q, m, d = data.draw(classic_sizes(st.integers(0, 6)))
    generator = torch.Generator().manual_seed(seed)
    locations = draw_locations(data.draw, position_anywhere(modes[0]), shapes, points, n, q, m)
    value = randn(generator, n, sum(height * width for height, width in shapes), m, d).tolist()
    weights = randn(generator, n, q, m, sum(points)).tolist()
    tensors = classic_tensors(value, locations, weights, shapes, points, (n, q, m, d), dtype)
    options = {"num_points": points, "interpolation": modes[0], "padding_mode": modes[1]}
    actual = call_on(backend, multi_scale_deformable_attention, tensors[0], shapes, *tensors[1:], **options)
    if actual is None:
        return
    if tensors[0].numel():
        value, locations, weights = [tensor.tolist() for tensor in tensors]
        expected = oracle.multi_scale_deformable_attention(value, shapes, locations, weights, points, *modes)
    else:
        expected = torch.zeros(n, q, m * d)
    assert_close(actual, expected, dtype)


def position_on_the_grid(size):
    """Return a strategy of positions on eighths of a pixel: centres, edges and between, on the map and off it."""
    if size == 0:
        return st.sampled_from([0.5, math.nan, math.inf])
    on_grid = st.integers(-20, 8 * size + 20).map(lambda eighths: eighths / 8 / size)
    on_centre = st.integers(-1, size).map(lambda pixel: (pixel + 0.5) / size)
    return st.one_of(on_centre, on_grid, on_centre, st.sampled_from([math.nan, math.inf, -math.inf]))


@EVERY_BACKEND
@PLENTY
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), modes=MODES, rate=st.sampled_from([0.0, 0.1, 0.5]))
def test_bad_pixels_come_through_exactly_where_they_are_read(backend, data, seed, modes, rate):
    # Sides are powers of two: on the grid every formula computes the same coordinate, and weights of 0 are 0.
    shapes, points, n, q, m, d = data.draw(classic_sizes(st.sampled_from([1, 2, 4, 8, 0])))
    generator = torch.Generator().manual_seed(seed)
    locations = draw_locations(data.draw, position_on_the_grid, shapes, points, n, q, m)
    value = randn(generator, n, sum(height * width for height, width in shapes), m, d)
    value[torch.rand(value.shape, generator=generator) < rate] = math.nan
    weights = randn(generator, n, q, m, sum(points)).tolist()
    tensors = classic_tensors(value.tolist(), locations, weights, shapes, points, (n, q, m, d), torch.float64)
    options = {"num_points": points, "interpolation": modes[0], "padding_mode": modes[1]}
    actual = call_on(backend, multi_scale_deformable_attention, tensors[0], shapes, *tensors[1:], **options)
    if actual is None or not tensors[0].numel():
        return
    value, locations, weights = [tensor.tolist() for tensor in tensors]
    expected = oracle.multi_scale_deformable_attention(value, shapes, locations, weights, points, *modes)
    assert_close(actual, expected, torch.float64)

    grad_output = randn(generator, n, q, m * d)
    gradients = torch.autograd.grad(actual, tensors, grad_output)
    expected_gradients = oracle.multi_scale_deformable_attention_gradients(
        value, shapes, locations, weights, points, grad_output.tolist(), *modes
    )
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        expected_gradient = torch.tensor(expected_gradient, dtype=torch.float64).reshape(gradient.shape)
        assert_close(gradient, expected_gradient, torch.float64)


@st.composite
def fused_cases(draw):
    """Draw a case of the fused op; its name carries a seed, so that its numbers differ, too."""
    shapes = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=3))
    if not any(height * width for height, width in shapes):
        shapes[0] = (3, 2)
    points = draw(st.lists(st.integers(0, 3), min_size=len(shapes), max_size=len(shapes)))
    return Case(
        name=f"drawn {draw(st.integers(0, 2**32))}",
        spatial_shapes=tuple(shapes),
        num_points=tuple(points),
        batch=draw(st.integers(1, 2)),
        queries=draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 3)),
        channels=draw(st.integers(1, 4)),
        coordinates=draw(st.sampled_from([2, 4])),
        reference_levels=draw(st.sampled_from(["each", "one", "left out"])),
        masked=draw(st.booleans()),
        flat=len(set(points)) > 1 or draw(st.booleans()),
        offset_scale=draw(st.sampled_from([0.5, 1.0, -0.3])),
    )


@EVERY_BACKEND
@PLENTY
@given(case=fused_cases(), modes=MODES)
def test_the_fused_op_and_its_gradients_are_those_of_the_oracle(backend, case, modes):
    inputs = inputs_of.__wrapped__(case, torch.float64)
    tensors = [tensor.clone().requires_grad_() for tensor in inputs.fused_tensors]
    options = {**inputs.fused_options, "interpolation": modes[0], "padding_mode": modes[1]}
    actual = call_on(backend, deformable_attention, tensors[0], inputs.spatial_shapes, *tensors[1:], **options)
    if actual is None:
        return
    assert_close(actual, oracle_fused(case, tensors, inputs.padding_mask, *modes), torch.float64)
    grad_output = grad_output_of(case, torch.float64)
    gradients = torch.autograd.grad(actual, tensors, grad_output)
    expected_gradients = oracle_fused_gradients(case, tensors, grad_output, inputs.padding_mask, *modes)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, torch.float64)


@EVERY_BACKEND
@PLENTY
@given(
    seed=st.integers(0, 2**32 - 1),
    padding_mode=st.sampled_from(["zeros", "border"]),
    factor=st.floats(-4, 4, width=32),
)
def test_the_output_is_linear_in_the_value(backend, seed, padding_mode, factor):
    generator = torch.Generator().manual_seed(seed)
    first, second = randn(generator, 2, 23, 3, 5), randn(generator, 2, 23, 3, 5)
    locations = torch.rand(2, 4, 3, 2, 3, 2, dtype=torch.float64, generator=generator) * 1.5 - 0.25
    weights = randn(generator, 2, 4, 3, 2, 3)

    def call(value):
        shapes, options = [(3, 5), (2, 4)], {"padding_mode": padding_mode}
        output = call_on(backend, multi_scale_deformable_attention, value, shapes, locations, weights, **options)
        assert output is not None, f"{backend} refuses a plain call"
        return output

    assert_close(call(first + factor * second), call(first) + factor * call(second), torch.float64)
