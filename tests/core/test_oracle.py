"""Tests of the oracle against numbers worked out by hand, of the cases, and of the tolerances."""

import ast
import functools
import math
import pathlib

import pytest
import torch

import oracle
from cases import (
    CASES,
    KINK_DISTANCE,
    SMALL_CASES,
    TINY_CASES,
    case_id,
    expected_classic_gradients,
    expected_fused_gradients,
    grad_output_of,
    inputs_of,
    level_sizes,
    oracle_classic,
    oracle_fused,
)
from tolerances import CUT_OFF, FINITE_DIFFERENCES, TOLERANCES, assert_close

# Two rows, four columns: centres at x = 1/8, 3/8, 5/8, 7/8 and y = 1/4, 3/4.
PLANE = [[1.0, 4.0, 9.0, 16.0], [100.0, 200.0, 400.0, 800.0]]


def test_the_oracle_imports_nothing_but_the_standard_library():
    tree = ast.parse(pathlib.Path(oracle.__file__).read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["math"]
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (1 / 8, 1 / 4, 1.0),  # centres
        (5 / 8, 1 / 4, 9.0),
        (7 / 8, 3 / 4, 800.0),
        (2 / 8, 1 / 4, 2.5),  # half way between 1 and 4
        (5 / 16, 1 / 4, 3.25),  # pixel coordinate 0.75: 0.25 * 1 + 0.75 * 4
        (4 / 8, 1 / 2, 153.25),  # the mean of 4, 9, 200, 400
        (0.0, 1 / 4, 0.5),  # the edge of the map: half of the first pixel, half off the map
        (1.0, 1 / 4, 8.0),
        (1 / 8, 1.0, 50.0),
        (0.0, 0.0, 0.25),  # a corner of the map: a quarter of its pixel
        (1.0, 1.0, 200.0),
        (-1 / 8, 1 / 4, 0.0),  # pixel coordinate -1
        (-1 / 16, 1 / 4, 0.25),  # pixel coordinate -0.75: a quarter of the first pixel
        (9 / 8, 1 / 4, 0.0),  # pixel coordinate W
        (17 / 16, 1 / 4, 4.0),  # pixel coordinate W - 0.25: a quarter of the last pixel
        (1 / 8, 5 / 4, 0.0),
        (math.inf, 1 / 4, 0.0),
        (1 / 8, -math.inf, 0.0),
    ],
)
def test_a_bilinear_read_with_zeros_is_the_number_worked_out_by_hand(x, y, expected):
    assert oracle.read(PLANE, x, y, "bilinear", "zeros") == expected


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (2 / 8, 1 / 4, 2.5),
        (0.0, 1 / 4, 1.0),
        (-3.0, 1 / 4, 1.0),
        (1.0, 3 / 4, 800.0),
        (1.0, 9.0, 800.0),
        (4 / 8, -1.0, 6.5),
        (math.inf, -math.inf, 16.0),
        (-math.inf, 1 / 2, 50.5),
    ],
)
def test_a_bilinear_read_with_border_is_the_number_worked_out_by_hand(x, y, expected):
    assert oracle.read(PLANE, x, y, "bilinear", "border") == expected


@pytest.mark.parametrize(
    ("x", "y", "zeros", "border"),
    [
        (0.0, 0.0, 1.0, 1.0),
        (0.24, 0.49, 1.0, 1.0),
        (0.25, 0.5, 200.0, 200.0),  # an edge between pixels belongs to the pixel after it
        (0.999, 0.999, 800.0, 800.0),
        (1.0, 0.0, 0.0, 16.0),
        (-0.001, 0.0, 0.0, 1.0),
        (0.6, 7.0, 0.0, 400.0),
        (math.inf, 0.9, 0.0, 800.0),
    ],
)
def test_a_nearest_read_is_the_number_worked_out_by_hand(x, y, zeros, border):
    assert oracle.read(PLANE, x, y, "nearest", "zeros") == zeros
    assert oracle.read(PLANE, x, y, "nearest", "border") == border


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_a_read_at_a_nan_is_nan_and_a_read_of_an_empty_plane_is_zero(interpolation, padding_mode):
    assert math.isnan(oracle.read(PLANE, math.nan, 0.5, interpolation, padding_mode))
    assert math.isnan(oracle.read(PLANE, math.inf, math.nan, interpolation, padding_mode))
    assert oracle.read([], math.nan, 0.5, interpolation, padding_mode) == 0
    assert oracle.read([[], []], math.nan, 0.5, interpolation, padding_mode) == 0


def test_a_pixel_of_weight_zero_is_not_read():
    plane = [[1.0, math.nan], [math.inf, math.nan]]
    assert oracle.read(plane, 1 / 4, 1 / 4) == 1
    assert oracle.slope(plane, 1 / 4, 1 / 4) == (-2, -2)  # unread pixels count as 0
    assert math.isnan(oracle.read(plane, 1 / 4 + 1e-9, 1 / 4))


@pytest.mark.parametrize(
    ("x", "y", "padding_mode", "expected"),
    [
        (2 / 8, 1 / 4, "zeros", (12.0, 295.0)),  # (4 - 1) * W; (mean of 100 and 200 - mean of 1 and 4) * H
        (3 / 8, 1 / 4, "zeros", (20.0, 392.0)),  # on a centre: (9 - 4) * W, (200 - 4) * H
        (7 / 8, 3 / 4, "zeros", (-3200.0, -1600.0)),  # on the last centre: (0 - 800) * W, (0 - 800) * H
        (-1 / 16, 1 / 4, "zeros", (4.0, 49.5)),  # the first pixel's weight grows by W
        (-1 / 8, 1 / 4, "zeros", (0.0, 0.0)),
        (-1.0, 1 / 4, "border", (0.0, 198.0)),
        (7 / 8, 1 / 4, "border", (0.0, 1568.0)),
        (1 / 8, 1 / 4, "border", (12.0, 198.0)),
    ],
)
def test_a_slope_is_the_number_worked_out_by_hand(x, y, padding_mode, expected):
    assert oracle.slope(PLANE, x, y, "bilinear", padding_mode) == expected


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize(("x", "y"), [(0.3, 0.6), (0.05, 0.9), (-0.1, 0.4), (1.05, 1.2), (3.0, 0.5), (0.71, -0.3)])
def test_a_slope_is_the_finite_difference_of_the_read(x, y, padding_mode):
    by_x, by_y = oracle.slope(PLANE, x, y, "bilinear", padding_mode)
    assert by_x == pytest.approx(
        oracle.central_difference(lambda at: oracle.read(PLANE, at, y, "bilinear", padding_mode), x), abs=1e-5
    )
    assert by_y == pytest.approx(
        oracle.central_difference(lambda at: oracle.read(PLANE, x, at, "bilinear", padding_mode), y), abs=1e-5
    )


def test_a_softmax_is_the_number_worked_out_by_hand():
    assert oracle.softmax([0.0, math.log(3.0)]) == pytest.approx([0.25, 0.75])
    assert oracle.softmax([1000.0, 1000.0]) == [0.5, 0.5]
    assert oracle.softmax([]) == []


def test_a_point_offset_is_in_pixels_of_its_level():
    assert oracle.sampling_location([0.5, 0.25], [1.0, 1.0], height=2, width=4, count=3) == (0.75, 0.75)


def test_a_box_offset_is_in_box_sizes_shared_among_the_points():
    location = oracle.sampling_location([0.5, 0.25, 0.2, 0.4], [2.0, -2.0], height=2, width=4, count=2)
    assert location == pytest.approx((0.5 + 0.2 * 0.5, 0.25 - 0.4 * 0.5))


def test_the_classic_op_is_the_number_worked_out_by_hand():
    # Two levels: PLANE and one pixel of 1000; one head, two channels, the second ten times the first.
    pixels = [*PLANE[0], *PLANE[1], 1000.0]
    value = [[[[pixel, 10 * pixel]] for pixel in pixels]]
    locations = [[[[[1 / 8, 1 / 4], [2 / 8, 1 / 4], [0.5, 0.5]]]]]
    weights = [[[[0.5, 2.0, 0.25]]]]
    output = oracle.multi_scale_deformable_attention(value, [(2, 4), (1, 1)], locations, weights, [2, 1])
    assert output == [[[0.5 * 1 + 2 * 2.5 + 0.25 * 1000, 10 * (0.5 * 1 + 2 * 2.5 + 0.25 * 1000)]]]


def test_heads_and_levels_of_the_classic_op_do_not_mix():
    # Level 0 is 1 x 2, level 1 is 2 x 1; every point reads a centre; powers of ten tell who was read.
    value = [[[[1.0], [10.0]], [[100.0], [1000.0]], [[1e4], [1e5]], [[1e6], [1e7]]]]
    locations = [[[[[1 / 4, 1 / 2], [1 / 2, 3 / 4]], [[3 / 4, 1 / 2], [1 / 2, 1 / 4]]]]]
    weights = [[[[1.0, 2.0], [3.0, 4.0]]]]
    output = oracle.multi_scale_deformable_attention(value, [(1, 2), (2, 1)], locations, weights, [1, 1])
    assert output == [[[1 + 2e6, 3000 + 4e5]]]


def test_the_fused_op_is_the_number_worked_out_by_hand():
    value = [[[[pixel]] for pixel in [*PLANE[0], *PLANE[1]]]]
    references = [[[1 / 8, 1 / 4]]]  # the level axis is left out
    offsets = [[[[[2.0, 0.0], [0.0, 1.0]]]]]  # two pixels right: 9; one pixel down: 100
    logits = [[[[0.0, math.log(3.0)]]]]
    output = oracle.deformable_attention(value, [(2, 4)], references, offsets, logits, [2])
    assert output[0][0][0] == pytest.approx(0.25 * 9 + 0.75 * 100)
    mask = [[False] * 4 + [True] + [False] * 3]
    output = oracle.deformable_attention(value, [(2, 4)], references, offsets, logits, [2], mask)
    assert output[0][0][0] == pytest.approx(0.25 * 9)  # the weights are not renormalised


def test_each_level_of_a_reference_is_used_for_its_own_points():
    value = [[[[1.0]], [[10.0]], [[100.0]], [[1000.0]]]]  # levels 1 x 2 and 2 x 1
    references = [[[[3 / 4, 1 / 2], [1 / 2, 1 / 4]]]]
    offsets = [[[[[0.0, 0.0], [0.0, 0.0]]]]]
    logits = [[[[0.0, 0.0]]]]
    output = oracle.deformable_attention(value, [(1, 2), (2, 1)], references, offsets, logits, [1, 1])
    assert output == [[[0.5 * 10 + 0.5 * 100]]]


def test_the_paper_equation_is_the_number_worked_out_by_hand():
    # C = 2, M = 1, K = 1, C_v = 1: the softmax of one logit is 1. The query moves the point one pixel to the right.
    x = [PLANE, [[-pixel for pixel in row] for row in PLANE]]
    projection, bias = [[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]], [0.5, 0.0, 0.0]
    output = oracle.seed_attention(
        [0.5, 0.0], [1 / 8, 1 / 4], x, projection, bias, w=[[[2.0], [3.0]]], w_prime=[[[10.0, 1.0]]]
    )
    assert output == [2 * (10 * 4 - 4), 3 * (10 * 4 - 4)]


def random_seed_inputs(generator, c, c_v, m, k, height, width):
    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return {
        "z_q": draw(c),
        "p_q": torch.rand(2, dtype=torch.float64, generator=generator),
        "x": draw(c, height, width),
        "projection": draw(3 * m * k, c),
        "bias": draw(3 * m * k),
        "w": draw(m, c, c_v),
        "w_prime": draw(m, c_v, c),
    }


def test_projecting_the_map_first_is_the_paper_equation():
    c, c_v, m, k, height, width = 6, 2, 3, 4, 5, 7
    inputs = random_seed_inputs(torch.Generator().manual_seed(0), c, c_v, m, k, height, width)
    expected = oracle.seed_attention(**{name: tensor.tolist() for name, tensor in inputs.items()})
    value = torch.einsum("mvc,chw->hwmv", inputs["w_prime"], inputs["x"]).reshape(1, height * width, m, c_v)
    projected = inputs["projection"] @ inputs["z_q"] + inputs["bias"]
    heads = oracle.deformable_attention(
        value.tolist(),
        [(height, width)],
        [[inputs["p_q"].tolist()]],
        projected[: 2 * m * k].reshape(1, 1, m, k, 2).tolist(),
        projected[2 * m * k :].reshape(1, 1, m, k).tolist(),
        [k],
    )
    actual = torch.einsum("mcv,mv->c", inputs["w"], torch.tensor(heads[0][0], dtype=torch.float64).reshape(m, c_v))
    assert_close(actual, expected, torch.float64)


ALL_CASES = CASES + SMALL_CASES + TINY_CASES


@pytest.mark.parametrize("form", ["fused", "classic"])
@pytest.mark.parametrize("case", ALL_CASES, ids=case_id)
def test_the_gradients_of_the_oracle_are_its_finite_differences(case, form):
    padding_mode = ["zeros", "border"][(ALL_CASES.index(case) + (form == "classic")) % 2]
    inputs, grad_output = inputs_of(case, torch.float64), grad_output_of(case, torch.float64)
    if form == "fused":
        tensors = inputs.fused_tensors
        forward = functools.partial(oracle_fused, case, padding_mask=inputs.padding_mask, padding_mode=padding_mode)
        gradients = expected_fused_gradients(case, torch.float64, padding_mode=padding_mode)
    else:
        tensors = inputs.classic_tensors
        forward = functools.partial(oracle_classic, case, padding_mode=padding_mode)
        gradients = expected_classic_gradients(case, torch.float64, padding_mode=padding_mode)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(tensor.shape, dtype=torch.float64, generator=generator) for tensor in tensors]
    # Along each tensor alone where that is quick, else along all of them at once.
    moves = [(i,) for i in range(len(tensors))] if case in SMALL_CASES + TINY_CASES else [range(len(tensors))]
    for moved in moves:

        def loss(step, moved=moved):
            near = [t + step * d if i in moved else t for i, (t, d) in enumerate(zip(tensors, directions, strict=True))]
            return (forward(near) * grad_output).sum().item()

        expected = oracle.central_difference(loss, 0.0)
        actual = sum((gradients[i] * directions[i]).sum() for i in moved)
        assert_close(actual, expected, torch.float64, FINITE_DIFFERENCES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ALL_CASES, ids=case_id)
def test_no_case_has_a_point_on_a_kink(case, dtype):
    inputs = inputs_of(case, dtype)
    sizes = level_sizes(case)
    levels = oracle.level_of_each_point(case.num_points)
    shape = (case.batch, case.queries, case.heads, len(levels), 2)
    references = inputs.reference_points.tolist()
    for n, q, m, t in torch.ones(shape[:-1]).nonzero().tolist():
        height, width = case.spatial_shapes[levels[t]]
        if 0 in (height, width):
            continue
        reference = references[n][q]
        if isinstance(reference[0], list):
            reference = reference[levels[t]] if len(reference) > 1 else reference[0]
        offset = inputs.sampling_offsets.reshape(shape)[n, q, m, t].tolist()
        count = case.num_points[levels[t]]
        fused = oracle.sampling_location(reference, offset, height, width, count, case.offset_scale)
        classic = inputs.sampling_locations.reshape(shape)[n, q, m, t].tolist()
        for location in (fused, classic):
            for position, size in zip(location, sizes[t].tolist(), strict=True):
                pixel = 2 * position * size
                assert abs(pixel - round(pixel)) / 2 > 0.99 * KINK_DISTANCE


def test_sizes_of_a_case_are_distinct_and_its_maps_are_not_square():
    for case in CASES:
        total = sum(case.num_points)
        sizes = [case.batch, case.queries, case.heads, case.channels, total, case.sequence]
        sizes = [size for size in sizes if size != 1]
        assert len(set(sizes)) == len(sizes), case.name
        assert all(height != width or height == 1 for height, width in case.spatial_shapes), case.name
        assert len(set(case.spatial_shapes)) == len(case.spatial_shapes), case.name
    assert len({case.name for case in CASES + SMALL_CASES + TINY_CASES}) == len(CASES + SMALL_CASES + TINY_CASES)


def test_a_case_is_the_same_each_time_it_is_drawn():
    first = inputs_of.__wrapped__(CASES[1], torch.float32)
    second = inputs_of.__wrapped__(CASES[1], torch.float32)
    for a, b in zip(
        first.fused_tensors + first.classic_tensors, second.fused_tensors + second.classic_tensors, strict=True
    ):
        assert torch.equal(a, b)


def test_some_points_of_the_cases_are_off_their_map():
    inside = outside = 0
    for case in CASES:
        locations = inputs_of(case, torch.float64).sampling_locations
        off = ((locations < 0) | (locations > 1)).any(-1)
        outside += int(off.sum())
        inside += int((~off).sum())
    assert inside > 500
    assert outside > 500


def test_the_oracle_ignores_what_is_masked():
    case = CASES[1]
    inputs = inputs_of(case, torch.float64)
    poisoned = inputs.value.masked_fill(inputs.padding_mask[:, :, None, None], math.nan)
    expected = oracle_fused(case, inputs.fused_tensors, inputs.padding_mask)
    actual = oracle_fused(case, [poisoned, *inputs.fused_tensors[1:]], inputs.padding_mask)
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, oracle_fused(case, inputs.fused_tensors))


@pytest.mark.parametrize("key", [key for key in TOLERANCES if key != FINITE_DIFFERENCES], ids=str)
def test_assert_close_fails_just_above_its_tolerance(key):
    dtype = torch.bfloat16 if key == CUT_OFF else key
    expected = torch.tensor([1.0, -3.0, 8.0], dtype=torch.float64)
    assert_close(expected.to(dtype), expected, dtype, key)
    entry = TOLERANCES[key]
    bound = entry.relative * expected.abs() + entry.absolute * 8
    for index in range(3):
        # The disturbance goes to `expected`, which is float64, so that it is not rounded away.
        near, far = expected.clone(), expected.clone()
        near[index] += 0.9 * bound[index]
        far[index] += 1.2 * bound[index]
        assert_close(expected.to(dtype), near, dtype, key)
        with pytest.raises(AssertionError):
            assert_close(expected.to(dtype), far, dtype, key)


def test_assert_close_fails_for_another_dtype_shape_nan_or_infinity():
    ones = torch.ones(3)
    nan = torch.tensor([1.0, math.nan, 1.0])
    infinite = torch.tensor([1.0, math.inf, 1.0])
    assert_close(ones, ones, torch.float32)
    assert_close(nan, nan, torch.float32)
    assert_close(infinite, infinite, torch.float32)
    pairs = [
        (ones, nan),
        (nan, ones),
        (ones, infinite),
        (infinite, -infinite),
        (nan, infinite),
        (ones, torch.ones(1, 3)),
    ]
    for actual, expected in pairs:
        with pytest.raises(AssertionError):
            assert_close(actual, expected, torch.float32)
    with pytest.raises(AssertionError):
        assert_close(ones.double(), ones, torch.float32)


def test_assert_close_fails_for_gradients_that_are_all_zero():
    with pytest.raises(AssertionError):
        assert_close(torch.zeros(3), torch.tensor([1e-3, 0.0, 0.0]), torch.float32)


def test_every_tolerance_has_a_reason():
    assert all(len(entry.reason) > 20 for entry in TOLERANCES.values())
