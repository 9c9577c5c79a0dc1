"""Tests of the semantics at the edges, line by line, for every backend by name.

Sizes are powers of two wherever a location has to be exactly on a centre or an edge, so that every correct formula
computes the same coordinate in every dtype.
"""

import functools
import itertools
import math

import pytest
import torch

from cases import inputs_of, named, oracle_classic, oracle_classic_gradients, oracle_fused
from deform_attn import deformable_attention, explain, multi_scale_deformable_attention
from oracle import multi_scale_deformable_attention as oracle_attention
from oracle import multi_scale_deformable_attention_gradients as oracle_gradients
from oracle import read, slope
from tolerances import assert_close

NAN, INF = math.nan, math.inf
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MODES = [(i, p) for i in ("bilinear", "nearest") for p in ("zeros", "border")]
# A narrow dtype differs in how numbers are read and written, not in the modes: each mode with one of the two.
DTYPES_AND_MODES = [(dtype, *modes) for dtype in (torch.float64, torch.float32) for modes in MODES]
DTYPES_AND_MODES += [(torch.bfloat16, *MODES[0]), (torch.bfloat16, *MODES[3])]
DTYPES_AND_MODES += [(torch.float16, *MODES[1]), (torch.float16, *MODES[2])]
ALL_MODES = pytest.mark.parametrize(("dtype", "interpolation", "padding_mode"), DTYPES_AND_MODES, ids=str)
POISONS = [NAN, INF, -INF]

# Two rows, four columns: centres at x = 1/8, 3/8, 5/8, 7/8 and y = 1/4, 3/4.
PLANE = [[1.0, 4.0, 9.0, 16.0], [100.0, 120.0, 160.0, 240.0]]
PIXELS = [[[[pixel]] for row in PLANE for pixel in row]]  # the plane as a value, [N, S, M, D]
# On the map, off the map, across its edges, on centres and between pixels.
LOCATIONS = [
    (0.3125, 0.375),
    (0.375, 0.25),
    (0.5, 0.6875),
    (0.0, 0.25),
    (0.0, 0.0),
    (1.0, 1.0),
    (0.9375, 0.75),
    (-0.0625, 0.4375),
    (0.625, 1.125),
    (1.0625, -0.125),
]
OFF_THE_MAP = [
    (-0.125, 0.25),  # pixel coordinate -1
    (1.125, 0.25),  # pixel coordinate W
    (0.375, -0.25),
    (0.375, 1.25),
    (-3.0, 0.5),
    (0.5, 7.0),
    (1.0e4, 0.5),
    (-6.0e4, 6.0e4),
]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def leaf(data, dtype=torch.float64):
    return torch.tensor(data, dtype=dtype).requires_grad_()


class Reads:
    """One query per location reads one plane through the classic op; N = M = D = L = P = 1."""

    def __init__(self, run, plane, locations, dtype=torch.float64, weight=1.0, **options):
        height, width = len(plane), len(plane[0])
        self.value = leaf([[[[pixel]] for row in plane for pixel in row]], dtype)
        self.locations = leaf([[[[[list(at)]]] for at in locations]], dtype)
        self.weights = leaf([[[[[weight]]] for _ in locations]], dtype)
        self.output = run(
            multi_scale_deformable_attention, self.value, [(height, width)], self.locations, self.weights, **options
        )

    def backward(self):
        self.output.backward(torch.ones_like(self.output))
        self.by_location = self.locations.grad.reshape(-1, 2)
        self.by_value = self.value.grad.flatten()
        self.by_weight = self.weights.grad.flatten()
        return self


def expected_reads(plane, locations, interpolation="bilinear", padding_mode="zeros"):
    return [[[read(plane, x, y, interpolation, padding_mode)] for x, y in locations]]


# Reads, on the map and off it.


@ALL_MODES
def test_a_read_is_that_of_the_oracle_on_the_map_across_its_edge_and_off_it(run, dtype, interpolation, padding_mode):
    locations = LOCATIONS + OFF_THE_MAP
    reads = Reads(run, PLANE, locations, dtype, interpolation=interpolation, padding_mode=padding_mode)
    assert_close(reads.output, expected_reads(PLANE, locations, interpolation, padding_mode), dtype)


def test_pixel_centres_are_at_half_integers(run, dtype):
    centres = [((column + 0.5) / 4, (row + 0.5) / 2) for row in range(2) for column in range(4)]
    reads = Reads(run, PLANE, centres, dtype)
    assert reads.output.flatten().tolist() == PLANE[0] + PLANE[1]


def test_a_corner_off_the_map_contributes_zero(run, dtype):
    # On an edge of the map half of the weight is off it, in a corner of the map three quarters.
    reads = Reads(run, PLANE, [(0.0, 0.25), (1.0, 0.25), (0.125, 1.0), (0.0, 0.0), (1.0, 1.0)], dtype)
    assert reads.output.flatten().tolist() == [0.5, 8.0, 50.0, 0.25, 60.0]


def test_a_corner_off_the_map_does_not_read_the_neighbour_in_memory(run, dtype):
    # Left of pixel (1, 0) memory holds pixel (0, 3); right of pixel (0, 3) it holds pixel (1, 0).
    plane = [[2.0, 4.0, 8.0, NAN], [6.0, 4.0, 8.0, 2.0]]
    assert Reads(run, plane, [(0.0, 0.75)], dtype).output.item() == 3.0
    plane = [[2.0, 4.0, 8.0, 6.0], [NAN, 4.0, 8.0, 2.0]]
    assert Reads(run, plane, [(1.0, 0.25)], dtype).output.item() == 3.0


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_a_level_does_not_read_the_levels_beside_it_in_memory(run, dtype, padding_mode):
    # Three levels in one row of memory; the middle one is finite and read across all four of its edges.
    middle = [[2.0, 4.0], [8.0, 16.0], [32.0, 64.0], [128.0, 256.0]]
    pixels = [NAN] * 6 + [pixel for row in middle for pixel in row] + [NAN] * 3
    value = torch.tensor(pixels, dtype=dtype).reshape(1, -1, 1, 1)
    at = [(0.0, 0.0), (1.0, 1.0), (0.5, -0.0625), (0.5, 1.0625), (-0.125, 0.5), (1.125, 0.5)]
    locations = torch.tensor(at, dtype=dtype).reshape(1, -1, 1, 1, 2)
    weights = torch.ones(1, len(at), 1, 1, dtype=dtype)
    output = run(
        multi_scale_deformable_attention,
        value,
        [(2, 3), (4, 2), (1, 3)],
        locations,
        weights,
        num_points=[0, 1, 0],
        padding_mode=padding_mode,
    )
    assert_close(output, expected_reads(middle, at, padding_mode=padding_mode), dtype)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_a_location_off_the_map_reads_exactly_zero(run, dtype, interpolation):
    reads = Reads(run, PLANE, OFF_THE_MAP, dtype, interpolation=interpolation)
    assert torch.equal(reads.output, torch.zeros_like(reads.output))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("interpolation", "padding_mode"), MODES)
def test_a_location_far_beyond_the_range_of_integers_is_off_the_map(run, dtype, interpolation, padding_mode):
    locations = [(sign * 10.0**power, 0.25) for power in (9, 10, 12, 18, 19, 20, 25, 30, 38) for sign in (1, -1)]
    reads = Reads(run, PLANE, locations, dtype, interpolation=interpolation, padding_mode=padding_mode)
    expected = [0.0] * len(locations) if padding_mode == "zeros" else [16.0, 1.0] * (len(locations) // 2)
    assert reads.output.flatten().tolist() == expected


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_with_border_a_location_off_the_map_reads_the_nearest_pixel_of_the_edge(run, dtype, interpolation):
    at = [(-3.0, 0.25), (9.0, 0.25), (0.375, -5.0), (0.375, 5.0), (-1.0, -1.0), (2.0, 2.0)]
    reads = Reads(run, PLANE, at, dtype, interpolation=interpolation, padding_mode="border")
    assert reads.output.flatten().tolist() == [1.0, 16.0, 4.0, 120.0, 1.0, 240.0]


def test_nearest_is_the_pixel_that_holds_the_location(run, dtype):
    # An edge between two pixels belongs to the one after it, the end of the map to none.
    at = [(0.0, 0.0), (0.21875, 0.46875), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25), (0.125, 0.5), (1.0, 0.25)]
    reads = Reads(run, PLANE, at, dtype, interpolation="nearest")
    assert reads.output.flatten().tolist() == [1.0, 1.0, 4.0, 9.0, 16.0, 100.0, 0.0]
    reads = Reads(run, PLANE, at, dtype, interpolation="nearest", padding_mode="border")
    assert reads.output.flatten().tolist() == [1.0, 1.0, 4.0, 9.0, 16.0, 100.0, 16.0]


# Pixels that are not finite.


@ALL_MODES
def test_on_a_centre_only_its_pixel_is_read(run, dtype, interpolation, padding_mode):
    for poison in POISONS:
        for row, column in itertools.product(range(2), range(4)):
            plane = [[poison] * 4 for _ in range(2)]
            plane[row][column] = 3.0
            at = [((column + 0.5) / 4, (row + 0.5) / 2)]
            reads = Reads(run, plane, at, dtype, interpolation=interpolation, padding_mode=padding_mode)
            assert reads.output.item() == 3.0
            reads.backward()
            by_value = [0.0] * 8
            by_value[4 * row + column] = 1.0
            assert reads.by_value.tolist() == by_value
            assert reads.by_weight.tolist() == [3.0]
            by_location = slope(plane, *at[0], interpolation, padding_mode)
            assert reads.by_location.tolist() == [list(by_location)]


def test_on_a_row_of_centres_only_its_two_pixels_are_read(run, dtype):
    for poison in POISONS:
        plane = [[poison] * 4, [2.0, 6.0, poison, poison]]
        reads = Reads(run, plane, [(0.25, 0.75), (0.1875, 0.75)], dtype)
        assert reads.output.flatten().tolist() == [4.0, 3.0]
        reads.backward()
        assert reads.by_location[:, 0].tolist() == [16.0, 16.0]
        assert reads.by_value.tolist() == [0.0] * 4 + [1.25, 0.75, 0.0, 0.0]


@ALL_MODES
def test_a_pixel_that_is_read_comes_through_however_bad_it_is(run, dtype, interpolation, padding_mode):
    for poison in POISONS:
        plane = [[poison, poison], [poison, poison]]
        reads = Reads(run, plane, [(0.4375, 0.4375)], dtype, interpolation=interpolation, padding_mode=padding_mode)
        assert_close(reads.output, [[[poison]]], dtype)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_off_the_map_with_zeros_a_bad_map_is_not_read(run, dtype, interpolation):
    for poison in POISONS:
        plane = [[poison] * 4, [poison] * 4]
        reads = Reads(run, plane, [*OFF_THE_MAP, (INF, 0.5), (0.5, -INF)], dtype, interpolation=interpolation)
        assert torch.equal(reads.output, torch.zeros_like(reads.output))
        reads.backward()
        for gradient in (reads.by_location, reads.by_value, reads.by_weight):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_an_attention_weight_of_zero_times_a_nan_that_is_read_is_nan(run, dtype):
    reads = Reads(run, [[NAN, 1.0], [2.0, 3.0]], [(0.4375, 0.4375), (0.75, 0.25)], dtype, weight=0.0)
    assert reads.output[0, 0].isnan().all()
    assert reads.output[0, 1].tolist() == [0.0]


# Locations that are not finite.


def location_inputs(dtype=torch.float64):
    """Return (case, value, locations, weights): two levels, two heads, three points; copies to write into."""
    case = named("decoder points")
    inputs = inputs_of(case, dtype)
    return case, *[tensor.clone() for tensor in inputs.classic_tensors]


@ALL_MODES
def test_a_nan_location_gives_nan_for_that_query_and_head_and_nothing_else(run, dtype, interpolation, padding_mode):
    case, value, locations, weights = location_inputs(dtype)
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    clean = run(multi_scale_deformable_attention, value, case.spatial_shapes, locations, weights, **options)
    expected = clean.clone()
    bad = [(NAN, 0.5), (0.5, NAN), (NAN, NAN), (NAN, INF), (-INF, NAN), (NAN, 9.0)]
    for query, at in enumerate(bad, start=2):
        locations[1, query, query % 3, 1, 0] = torch.tensor(at)
        expected.reshape(case.batch, case.queries, case.heads, case.channels)[1, query, query % 3] = NAN
    output = run(multi_scale_deformable_attention, value, case.spatial_shapes, locations, weights, **options)
    assert_close(output, expected, dtype)


@ALL_MODES
def test_a_nan_location_passes_no_gradient_to_the_value_and_gets_none(run, dtype, interpolation, padding_mode):
    case, value, locations, weights = location_inputs(dtype)
    at = (1, 4, 2, 1, 0)
    locations[at] = torch.tensor([0.5, NAN])
    tensors = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    output = run(multi_scale_deformable_attention, value, case.spatial_shapes, locations, weights, **options)
    grad_output = torch.ones_like(output)
    by_value, by_locations, by_weights = torch.autograd.grad(output, tensors, grad_output)
    expected = oracle_classic_gradients(case, tensors, grad_output, **options)
    assert_close(by_value, expected[0], dtype)
    assert_close(by_locations, expected[1], dtype)
    assert_close(by_weights, expected[2], dtype)
    assert by_value.isfinite().all()
    assert by_locations[at].tolist() == [0.0, 0.0]
    # The derivative by a weight is what was read.
    assert by_weights.isnan().nonzero().tolist() == [list(at)]


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_a_nan_offset_stays_in_its_head_and_a_nan_reference_in_its_query(run, padding_mode):
    case = named("decoder points")
    inputs = inputs_of(case, torch.float32)
    value, reference_points, offsets, logits = [tensor.clone() for tensor in inputs.fused_tensors]
    shapes = inputs.spatial_shapes
    clean = run(deformable_attention, value, shapes, reference_points, offsets, logits, padding_mode=padding_mode)
    heads = (case.batch, case.queries, case.heads, case.channels)

    bad = offsets.clone()
    bad[1, 3, 2, 0, 1, 0] = NAN
    output = run(deformable_attention, value, shapes, reference_points, bad, logits, padding_mode=padding_mode)
    expected = clean.clone()
    expected.reshape(heads)[1, 3, 2] = NAN
    assert_close(output, expected, torch.float32)

    bad = reference_points.clone()
    bad[0, 5, 0, 1] = NAN
    output = run(deformable_attention, value, shapes, bad, offsets, logits, padding_mode=padding_mode)
    expected = clean.clone()
    expected.reshape(heads)[0, 5] = NAN
    assert_close(output, expected, torch.float32)


def test_a_nan_offset_gets_no_gradient_and_spoils_no_other(run):
    case = named("decoder points")
    inputs = inputs_of(case, torch.float64)
    value, reference_points, offsets, logits = [tensor.clone() for tensor in inputs.fused_tensors]
    offsets[1, 3, 2, 0, 1, 0] = NAN
    tensors = [tensor.requires_grad_() for tensor in (value, reference_points, offsets, logits)]
    output = run(deformable_attention, value, inputs.spatial_shapes, *tensors[1:])
    by_value, by_reference, by_offsets, by_logits = torch.autograd.grad(output, tensors, torch.ones_like(output))
    assert by_value.isfinite().all()
    assert by_reference.isfinite().all()
    assert by_offsets.isfinite().all()
    assert by_offsets[1, 3, 2, 0, 1].tolist() == [0.0, 0.0]
    spoiled = torch.zeros(by_logits.shape, dtype=torch.bool)
    spoiled[1, 3, 2] = True  # the softmax of this query and head: each of its logits moves the weight of the NaN
    assert torch.equal(by_logits.isnan(), spoiled)


@ALL_MODES
def test_an_infinite_location_is_off_the_map_with_zeros_and_the_clamped_pixel_with_border(
    run, dtype, interpolation, padding_mode
):
    at = [(INF, 0.25), (-INF, 0.25), (0.375, INF), (0.375, -INF), (INF, INF), (-INF, INF), (INF, -7.0)]
    reads = Reads(run, PLANE, at, dtype, interpolation=interpolation, padding_mode=padding_mode)
    border = [16.0, 1.0, 120.0, 4.0, 240.0, 100.0, 16.0]
    expected = [0.0] * len(at) if padding_mode == "zeros" else border
    assert reads.output.flatten().tolist() == expected
    reads.backward()
    # Along the axis that is infinite there is no slope; along the other one there may be, with border.
    slopes = [slope(PLANE, x, y, interpolation, padding_mode) for x, y in at]
    assert_close(reads.by_location, slopes, dtype)
    assert reads.by_weight.tolist() == expected


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_an_infinite_offset_is_an_infinite_location(run, padding_mode, coordinates):
    value = torch.tensor([*PLANE[0], *PLANE[1]]).reshape(1, 8, 1, 1).requires_grad_()
    reference = torch.tensor([0.375, 0.25, 0.5, 0.5][:coordinates]).reshape(1, 1, coordinates)
    offsets = torch.tensor([[INF, 0.0], [-INF, 0.0]]).reshape(1, 1, 1, 1, 2, 2).requires_grad_()
    logits = torch.zeros(1, 1, 1, 2)
    output = run(deformable_attention, value, [(2, 4)], reference, offsets, logits, padding_mode=padding_mode)
    assert output.item() == (0.0 if padding_mode == "zeros" else 0.5 * 16 + 0.5 * 1)
    output.sum().backward()
    assert offsets.grad[..., 0].flatten().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("interpolation", "padding_mode"), MODES)
def test_a_box_or_offset_that_is_not_finite_gets_no_gradient_along_its_axis(run, dtype, interpolation, padding_mode):
    pairs = [(size, offset) for size in (INF, -INF, NAN) for offset in (0.0, 1.5, -INF, NAN)]
    pairs += [(0.5, INF), (0.5, NAN), (0.0, INF)]
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    for size, offset in pairs:
        value, reference = leaf(PIXELS, dtype), leaf([[[0.375, 0.3, size, 0.5]]], dtype)
        offsets, logits = leaf([[[[[[offset, 0.25], [0.5, -0.5]]]]]], dtype), leaf([[[[0.5, 0.0]]]], dtype)
        tensors = value, reference, offsets, logits
        output = run(deformable_attention, value, [(2, 4)], *tensors[1:], **options)
        _, by_reference, by_offsets, _ = torch.autograd.grad(output.sum(), tensors)
        assert by_offsets[0, 0, 0, 0, 0, 0] == 0, (size, offset)
        assert by_offsets.isfinite().all(), (size, offset)
        assert by_reference.isfinite().all(), (size, offset)
        if not math.isfinite(size):
            assert by_offsets[..., 0].tolist() == [[[[[0.0, 0.0]]]]], (size, offset)
            assert by_reference[0, 0, 2] == 0, (size, offset)


def test_a_box_that_is_not_finite_gets_no_gradient_where_it_is_differentiated_twice(run):
    value, reference = leaf(PIXELS), leaf([[[0.375, 0.3, INF, 0.5]]])
    offsets, logits = leaf([[[[[[0.5, 0.25], [-INF, -0.5]]]]]]), leaf([[[[0.5, 0.0]]]])
    tensors = value, reference, offsets, logits
    output = run(deformable_attention, value, [(2, 4)], *tensors[1:], padding_mode="border")
    gradients = torch.autograd.grad(output.sum(), tensors, create_graph=True)
    for gradient in gradients:
        assert gradient.isfinite().all()
    second = torch.autograd.grad(sum(gradient.sin().sum() for gradient in gradients), tensors)
    for gradient in second:
        assert gradient.isfinite().all()
    assert gradients[1][0, 0, 2] == second[1][0, 0, 2] == 0


# Weights.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_softmax_weight_below_the_smallest_normal_number_is_zero(run, dtype):
    # Times infinity a weight of 0 is NaN and any other one infinite; the second point reads 3.
    value = torch.tensor([INF, 3.0], dtype=dtype).reshape(1, 2, 1, 1)
    reference = torch.tensor([[[0.25, 0.5]]], dtype=dtype)
    offsets = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=dtype).reshape(1, 1, 1, 1, 2, 2)
    threshold = math.log(torch.finfo(dtype).tiny)
    for logit, expected in ((threshold + 0.01, INF), (threshold - 0.01, NAN), (threshold - 5, NAN), (-INF, NAN)):
        logits = torch.tensor([logit, 0.0], dtype=dtype).reshape(1, 1, 1, 2)
        output = run(deformable_attention, value, [(1, 2)], reference, offsets, logits)
        assert_close(output, [[[expected]]], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_softmax_weight_is_judged_after_its_division(run, dtype):
    # Eight equal points beside it: exp(logit - largest) is normal, an eighth of it is not.
    value = torch.tensor([INF, 3.0], dtype=dtype).reshape(1, 2, 1, 1)
    reference = torch.tensor([[[0.75, 0.5]]], dtype=dtype)
    offsets = torch.zeros(1, 1, 1, 1, 9, 2, dtype=dtype)
    offsets[..., 0, 0] = -1
    logits = torch.zeros(1, 1, 1, 9, dtype=dtype)
    logits[..., 0] = math.log(torch.finfo(dtype).tiny) + 1
    output = run(deformable_attention, value, [(1, 2)], reference, offsets, logits)
    assert output.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_weight_that_is_given_is_used_however_small_it_is(run, dtype):
    smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    value = torch.tensor([INF], dtype=dtype).reshape(1, 1, 1, 1)
    locations = torch.full((1, 1, 1, 1, 1, 2), 0.625, dtype=dtype)
    weights = torch.full((1, 1, 1, 1, 1), smallest, dtype=dtype)
    output = run(multi_scale_deformable_attention, value, [(1, 1)], locations, weights)
    assert output.item() == INF


# Gradients of the output that are not finite.


@ALL_MODES
@pytest.mark.parametrize("further", ["off the map", "NaN", "on an empty level"])
def test_what_passes_no_gradient_on_passes_none_that_is_not_finite(run, dtype, interpolation, padding_mode, further):
    value = leaf(PIXELS, dtype)
    at = {"off the map": [-3.0, 9.0], "NaN": [NAN, 0.5], "on an empty level": [0.4, 0.4]}[further]
    locations, weights = leaf([[[[at]]]], dtype), leaf([[[[0.5]]]], dtype)
    shapes, num_points = [(2, 4), (0, 3)], [0, 1] if further == "on an empty level" else [1, 0]
    options = {"interpolation": interpolation, "padding_mode": padding_mode, "num_points": num_points}
    for pull in POISONS:
        output = run(multi_scale_deformable_attention, value, shapes, locations, weights, **options)
        by_value, by_locations, by_weights = torch.autograd.grad(
            output, [value, locations, weights], torch.full_like(output, pull)
        )
        assert not by_locations.any(), pull
        if further != "off the map" or padding_mode == "zeros":
            assert not by_value.any(), pull
        if further == "on an empty level":
            assert not by_weights.any(), pull


@functools.cache
def single_read(where, dtype):
    """Return what the classic op takes for one read of the map of eight pixels."""
    return leaf(PIXELS, dtype), leaf([[[[list(where)]]]], dtype), leaf([[[[0.5]]]], dtype)


@functools.cache
def oracle_gradients_of_a_read(where, dtype, pull, *modes):
    """Return what the oracle says of a single read, once for all backends."""
    value, locations, weights = (tensor.tolist() for tensor in single_read(where, dtype))
    gradients = oracle_gradients(value, [(2, 4)], locations, weights, [1], [[[pull]]], *modes)
    return [torch.tensor(gradient, dtype=torch.float64) for gradient in gradients]


@pytest.mark.parametrize(("dtype", "pull"), [(torch.float64, NAN), (torch.float64, INF), (torch.float32, -INF)])
@pytest.mark.parametrize(("interpolation", "padding_mode"), MODES)
def test_where_a_bad_gradient_of_the_output_goes_is_what_the_oracle_says(run, dtype, interpolation, padding_mode, pull):
    # Whether an entry that is not finite is NaN or an infinity may depend on the order of a sum.
    at = LOCATIONS + OFF_THE_MAP + [((c + 0.5) / 4, (r + 0.5) / 2) for r in (-1, 0, 1, 2) for c in (-1, 0, 1, 3, 4)]
    for where in at:
        value, *points = tensors = single_read(where, dtype)
        options = {"interpolation": interpolation, "padding_mode": padding_mode}
        output = run(multi_scale_deformable_attention, value, [(2, 4)], *points, num_points=1, **options)
        gradients = torch.autograd.grad(output, tensors, torch.full_like(output, pull))
        expected = oracle_gradients_of_a_read(where, dtype, pull, interpolation, padding_mode)
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert torch.equal(gradient.isfinite(), wanted.isfinite()), where
            assert not gradient[gradient.isfinite()].any()


@pytest.mark.parametrize("pull", [NAN, INF])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_an_empty_level_passes_no_gradient_on_beside_one_that_is_not_finite(run, coordinates, pull):
    value, reference = leaf(PIXELS), leaf([[[[0.3, 0.4, 0.5, 0.25][:coordinates]] * 2]])
    offsets, logits = leaf([[[[[[1.0, 2.0]], [[0.25, 0.125]]]]]]), leaf([[[[0.5, 0.0]]]])
    tensors = value, reference, offsets, logits
    output = run(deformable_attention, value, [(0, 3), (2, 4)], *tensors[1:])
    _, by_reference, by_offsets, _ = torch.autograd.grad(output, tensors, torch.full_like(output, pull))
    assert not by_offsets[:, :, :, 0].any()
    assert not by_reference[:, :, 0].any()
    assert not by_offsets[:, :, :, 1].isfinite().any()


# Masks and empty levels.


@ALL_MODES
def test_a_masked_pixel_reads_as_zero_and_gets_no_gradient_whatever_it_holds(run, dtype, interpolation, padding_mode):
    case = named("encoder")
    inputs = inputs_of(case, dtype)
    mask = inputs.padding_mask[:, :, None, None]
    options = {"interpolation": interpolation, "padding_mode": padding_mode}

    def call(value, **more):
        tensors = [tensor.clone().requires_grad_() for tensor in (value, *inputs.fused_tensors[1:])]
        output = run(deformable_attention, tensors[0], inputs.spatial_shapes, *tensors[1:], **options, **more)
        return output, torch.autograd.grad(output, tensors, torch.ones_like(output))

    zeroed = inputs.value.masked_fill(mask, 0.0)
    expected, expected_gradients = call(zeroed)
    for poison in (7.0, NAN, INF):
        actual, gradients = call(inputs.value.masked_fill(mask, poison), padding_mask=inputs.padding_mask)
        assert_close(actual, expected, dtype)
        assert_close(gradients[0], expected_gradients[0].masked_fill(mask, 0.0), dtype)
        assert not gradients[0].masked_select(mask).any()
        for gradient, expected_gradient in zip(gradients[1:], expected_gradients[1:], strict=True):
            assert_close(gradient, expected_gradient, dtype)


def test_weights_are_not_renormalised_over_what_is_not_masked(run, dtype):
    value = torch.tensor([[8.0], [4.0]], dtype=dtype).reshape(1, 2, 1, 1)
    reference = torch.tensor([[[0.25, 0.5]]], dtype=dtype)
    offsets = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=dtype).reshape(1, 1, 1, 1, 2, 2)
    logits = torch.zeros(1, 1, 1, 2, dtype=dtype)
    mask = torch.tensor([[False, True]])
    output = run(deformable_attention, value, [(1, 2)], reference, offsets, logits, padding_mask=mask)
    assert output.item() == 4.0


def test_a_mask_of_all_padding_gives_zero(run):
    inputs = inputs_of(named("encoder"), torch.float32)
    value = torch.full_like(inputs.value, NAN)
    mask = torch.ones_like(inputs.padding_mask)
    output = run(deformable_attention, value, inputs.spatial_shapes, *inputs.fused_tensors[1:], padding_mask=mask)
    assert torch.equal(output, torch.zeros_like(output))


def test_a_padded_batch_gives_each_image_what_it_gets_alone(run):
    # The first image is 2 x 4, the second 2 x 3 with one column of padding; the padding holds NaN.
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 8, 1, 3, generator=generator)
    value[1, [3, 7]] = NAN
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[1, [3, 7]] = True
    pixels = torch.rand(2, 5, 1, 1, 4, 2, generator=generator) * torch.tensor([3.0, 2.0])
    logits = torch.randn(2, 5, 1, 4, generator=generator)
    reference = torch.zeros(2, 5, 1, 2)
    output = run(deformable_attention, value, [(2, 4)], reference, pixels, logits, padding_mask=mask)
    alone = value[1:, [0, 1, 2, 4, 5, 6]]
    expected = run(deformable_attention, alone, [(2, 3)], reference[1:], pixels[1:], logits[1:])
    assert_close(output[1:], expected, torch.float32)


@pytest.mark.parametrize(("interpolation", "padding_mode"), MODES)
@pytest.mark.parametrize("empty", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_level_contributes_zero_and_gets_no_gradient(run, interpolation, padding_mode, empty):
    case, value, locations, weights = location_inputs()
    options = {"interpolation": interpolation, "padding_mode": padding_mode}

    def call(shapes, locations, weights, **more):
        tensors = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
        output = run(multi_scale_deformable_attention, tensors[0], shapes, *tensors[1:], **options, **more)
        return output, torch.autograd.grad(output, tensors, torch.ones_like(output))

    expected, expected_gradients = call(list(case.spatial_shapes), locations, weights)
    # Those of a point of each query and head in turn: on the map, off it, and not finite.
    points = locations[:, :, :, :1, :, :1]
    kinds = torch.tensor([0.5, 7.0, NAN, INF], dtype=torch.float64)[torch.arange(points.numel()) % 4]
    nowhere = kinds.view_as(points).expand_as(locations[:, :, :, :1])
    shapes = [case.spatial_shapes[0], empty, case.spatial_shapes[1]]
    wider = torch.cat([locations[:, :, :, :1], nowhere, locations[:, :, :, 1:]], dim=3)
    wider_weights = torch.cat([weights[:, :, :, :1], weights[:, :, :, :1], weights[:, :, :, 1:]], dim=3)
    output, gradients = call(shapes, wider, wider_weights)
    assert_close(output, expected, torch.float64)
    assert_close(gradients[0], expected_gradients[0], torch.float64)
    for gradient, expected_gradient in zip(gradients[1:], expected_gradients[1:], strict=True):
        assert_close(gradient[:, :, :, [0, 2]], expected_gradient, torch.float64)
        assert torch.equal(gradient[:, :, :, 1], torch.zeros_like(gradient[:, :, :, 1]))


def test_an_empty_level_is_skipped_even_where_its_weight_is_nan(run):
    value = torch.tensor([3.0]).reshape(1, 1, 1, 1)
    locations = torch.full((1, 1, 1, 2, 1, 2), 0.5)
    weights = torch.tensor([2.0, NAN]).reshape(1, 1, 1, 2, 1)
    output = run(multi_scale_deformable_attention, value, [(1, 1), (0, 1)], locations, weights)
    assert output.item() == 6.0


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("offset", [1.0, NAN, INF])
def test_the_offsets_of_an_empty_level_spoil_nothing(run, coordinates, offset):
    # An offset in pixels of a level 0 wide would be divided by zero.
    value = leaf([*PLANE[0], *PLANE[1]]).reshape(1, 8, 1, 1)
    reference = leaf([[[[0.3, 0.4, 0.5, 0.25][:coordinates]]]])
    offsets = leaf([[[[[[offset, offset]], [[0.25, 0.125]]]]]])
    logits = leaf([[[[math.log(3.0), 0.0]]]])
    output = run(deformable_attention, value, [(3, 0), (2, 4)], reference, offsets, logits)
    tensors = [value, reference, offsets, logits]
    gradients = torch.autograd.grad(output, tensors, torch.ones_like(output))

    alone = torch.autograd.functional.vjp  # the level by itself, at its quarter of the softmax
    expected, expected_gradients = alone(
        lambda *inputs: 0.25 * run(deformable_attention, inputs[0], [(2, 4)], *inputs[1:]),
        (value.detach(), reference.detach(), offsets.detach()[:, :, :, 1:], logits.detach()[..., 1:]),
        torch.ones_like(output),
    )
    assert_close(output, expected, torch.float64)
    assert_close(gradients[0], expected_gradients[0], torch.float64)
    assert_close(gradients[1], expected_gradients[1], torch.float64)
    assert_close(gradients[2][:, :, :, 1:], expected_gradients[2], torch.float64)
    assert gradients[2][:, :, :, 0].flatten().tolist() == [0.0, 0.0]
    # out = a_1 * read: d out / d logit_0 = -a_0 a_1 read, d out / d logit_1 = a_0 a_1 read.
    by_logit = 0.75 * expected.item()
    assert_close(gradients[3].flatten(), [-by_logit, by_logit], torch.float64)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_levels_that_are_all_empty_give_zero(run, padding_mode):
    value = torch.zeros(2, 0, 3, 5, requires_grad=True)
    locations = torch.full((2, 4, 3, 2, 1, 2), 0.5, requires_grad=True)
    weights = torch.ones(2, 4, 3, 2, 1, requires_grad=True)
    output = run(
        multi_scale_deformable_attention, value, [(0, 7), (2, 0)], locations, weights, padding_mode=padding_mode
    )
    assert torch.equal(output, torch.zeros(2, 4, 15))
    for gradient in torch.autograd.grad(output.sum(), [value, locations, weights]):
        assert not gradient.any()


@pytest.mark.parametrize("coordinates", [2, 4])
def test_points_that_are_all_on_an_empty_level_give_zero_with_a_backward(run, coordinates):
    value, reference = leaf([[[[3.0]], [[4.0]]]]), leaf([[[0.3, 0.4, 0.5, 0.25][:coordinates]]])
    offsets, logits = leaf([[[[[1.0, 2.0]]]]]), leaf([[[[0.5]]]])
    shapes, num_points = [(1, 2), (0, 3)], [0, 1]
    output = run(deformable_attention, value, shapes, reference, offsets, logits, num_points=num_points)
    assert output.tolist() == [[[0.0]]]
    for gradient in torch.autograd.grad(output, [value, reference, offsets, logits], torch.ones_like(output)):
        assert not gradient.any()


# Slopes.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("interpolation", "padding_mode"), MODES)
@pytest.mark.parametrize("further", [[(1e30, -1e30)], [(INF, 0.25), (0.375, -INF), (-INF, INF)]], ids=str)
def test_off_the_map_or_at_infinity_a_location_gets_no_gradient(run, dtype, interpolation, padding_mode, further):
    at = OFF_THE_MAP + further
    reads = Reads(run, PLANE, at, dtype, interpolation=interpolation, padding_mode=padding_mode).backward()
    if padding_mode == "zeros":
        assert torch.equal(reads.by_location, torch.zeros(len(at), 2, dtype=dtype))
        assert torch.equal(reads.by_value, torch.zeros(8, dtype=dtype))
    else:
        slopes = torch.tensor([slope(PLANE, x, y, interpolation, padding_mode) for x, y in at])
        assert_close(reads.by_location, slopes, dtype)
        outside_x = torch.tensor([not 0.125 <= x <= 0.875 for x, _ in at])
        outside_y = torch.tensor([not 0.25 <= y <= 0.75 for _, y in at])
        assert not reads.by_location[outside_x, 0].any()
        assert not reads.by_location[outside_y, 1].any()


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_between_centres_the_slope_is_that_of_the_cell(run, dtype, padding_mode):
    at = [(0.3125, 0.375), (0.5, 0.6875), (0.75, 0.5), (0.0625, 0.5), (0.9375, 0.4375), (0.25, 0.0625), (0.5, 0.875)]
    reads = Reads(run, PLANE, at, dtype, padding_mode=padding_mode).backward()
    assert_close(reads.by_location, [slope(PLANE, x, y, "bilinear", padding_mode) for x, y in at], dtype)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_on_a_centre_the_slope_is_that_of_the_cell_that_floor_picks(run, padding_mode):
    reads = Reads(run, PLANE, [(0.375, 0.25), (0.625, 0.25)], padding_mode=padding_mode).backward()
    assert reads.by_location.tolist() == [[20.0, 232.0], [28.0, 302.0]]


def test_with_zeros_the_slope_on_the_last_centre_leads_off_the_map(run):
    reads = Reads(run, PLANE, [(0.875, 0.75)]).backward()
    assert reads.by_location.tolist() == [[-4 * 240.0, -2 * 240.0]]


def test_with_border_the_slope_on_the_outermost_centres_is_that_of_the_map_to_their_right(run):
    reads = Reads(run, PLANE, [(0.125, 0.25), (0.875, 0.75)], padding_mode="border").backward()
    assert reads.by_location.tolist() == [[12.0, 198.0], [0.0, 0.0]]


def test_nearest_gives_locations_a_gradient_of_zeros_and_the_others_theirs(run, dtype):
    reads = Reads(run, PLANE, [(0.3125, 0.375), (0.9375, 0.75)], dtype, weight=0.5, interpolation="nearest")
    reads.backward()
    assert torch.equal(reads.by_location, torch.zeros(2, 2, dtype=dtype))
    assert reads.by_value.tolist() == [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    assert reads.by_weight.tolist() == [4.0, 240.0]


@pytest.mark.parametrize("coordinates", [2, 4])
def test_nearest_gives_offsets_and_references_a_gradient_of_zeros(run, coordinates):
    case = named("small points" if coordinates == 2 else "small boxes")
    inputs = inputs_of(case, torch.float32)
    tensors = [tensor.clone().requires_grad_() for tensor in inputs.fused_tensors]
    output = run(
        deformable_attention,
        tensors[0],
        inputs.spatial_shapes,
        *tensors[1:],
        interpolation="nearest",
        **inputs.fused_options,
    )
    by_value, by_reference, by_offsets, by_logits = torch.autograd.grad(output.sum(), tensors)
    assert torch.equal(by_reference, torch.zeros_like(by_reference))
    assert torch.equal(by_offsets, torch.zeros_like(by_offsets))
    assert by_value.any()
    assert by_logits.any()


# Sizes.


def sized(n=2, q=4, m=3, d=5, shapes=((2, 3), (4, 1)), points=(2, 2), dtype=torch.float32):
    """Return the tensors of both entry points, flat, for sizes that may be zero."""
    generator = torch.Generator().manual_seed(0)
    sequence, total = sum(height * width for height, width in shapes), sum(points)

    def draw(*shape):
        return torch.rand(*shape, dtype=dtype, generator=generator).requires_grad_()

    value, weights = draw(n, sequence, m, d), draw(n, q, m, total)
    fused = [value, draw(n, q, len(shapes), 2), draw(n, q, m, total, 2), weights]
    return fused, [value, draw(n, q, m, total, 2), weights]


@pytest.mark.parametrize(
    "sizes", [{"q": 0}, {"n": 0}, {"points": (0, 0)}, {"n": 0, "q": 0}, {"shapes": ((0, 3), (4, 0))}], ids=str
)
@pytest.mark.parametrize("form", ["fused", "classic"])
def test_sizes_of_zero_give_an_empty_or_zero_output_with_a_backward(run, form, sizes):
    fused, classic = sized(**sizes)
    shapes, points = list(sizes.get("shapes", ((2, 3), (4, 1)))), list(sizes.get("points", (2, 2)))
    if form == "fused":
        entry_point, tensors = deformable_attention, fused
    else:
        entry_point, tensors = multi_scale_deformable_attention, classic
    output = run(entry_point, tensors[0], shapes, *tensors[1:], num_points=points)
    assert output.shape == (sizes.get("n", 2), sizes.get("q", 4), 15)
    assert output.dtype == torch.float32
    assert not output.any()
    gradients = torch.autograd.grad(output.sum(), tensors)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


@pytest.mark.parametrize("sizes", [{"q": 0}, {"n": 0}, {"points": (0, 0)}, {"shapes": ((0, 3), (4, 0))}], ids=str)
def test_sizes_of_zero_find_a_backend_by_themselves(sizes):
    fused, _ = sized(**sizes)
    shapes, points = list(sizes.get("shapes", ((2, 3), (4, 1)))), list(sizes.get("points", (2, 2)))
    output = deformable_attention(fused[0], shapes, *fused[1:], num_points=points)
    assert output.shape == (sizes.get("n", 2), sizes.get("q", 4), 15)
    choice = explain(fused[0], shapes, *fused[1:], num_points=points)
    assert choice.reasons[choice.backend] == []


@functools.cache
def call_of(points, name, size):
    """Return what the classic op takes, one of its sizes given, and what the oracle returns for it."""
    _, (value, locations, weights) = sized(n=1, q=2, points=points, **{name: size})
    call = value, [(2, 3), (4, 1)], locations, weights
    return call, oracle_attention(value.tolist(), call[1], locations.tolist(), weights.tolist(), points)


@pytest.mark.parametrize("size", [("d", 1), ("d", 7), ("d", 33), ("d", 130), ("m", 1), ("m", 13)], ids=str)
@pytest.mark.parametrize("points", [(1, 1), (0, 1), (17, 3), (40, 41)])
def test_any_number_of_channels_heads_and_points_works(run, size, points):
    call, expected = call_of(points, *size)
    output = run(multi_scale_deformable_attention, *call, num_points=list(points))
    assert_close(output, expected, torch.float32)


@ALL_MODES
def test_a_one_pixel_level_works(run, dtype, interpolation, padding_mode):
    at = [(0.5, 0.5), (0.25, 0.5), (0.0, 0.0), (1.0, 0.75), (-0.25, 0.5), (-0.5, 0.5), (1.5, 0.5), (-7.0, 0.5)]
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    reads = Reads(run, [[3.0]], at, dtype, **options)
    assert_close(reads.output, expected_reads([[3.0]], at, interpolation, padding_mode), dtype)
    off_centre = at[1:5]
    reads = Reads(run, [[3.0]], off_centre, dtype, **options).backward()
    assert_close(reads.by_location, [slope([[3.0]], x, y, interpolation, padding_mode) for x, y in off_centre], dtype)


# Dtypes.


@pytest.mark.parametrize("value_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("other_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["fused", "classic"])
def test_dtypes_may_be_mixed_and_the_output_has_that_of_the_value(run, form, value_dtype, other_dtype):
    case = named("small points")
    value, inputs = inputs_of(case, value_dtype).value, inputs_of(case, other_dtype)
    if form == "fused":
        entry_point, others, options = deformable_attention, inputs.fused_tensors[1:], inputs.fused_options
    else:
        entry_point, others, options = multi_scale_deformable_attention, inputs.classic_tensors[1:], {}
    tensors = [tensor.clone().requires_grad_() for tensor in (value, *others)]
    output = run(entry_point, tensors[0], inputs.spatial_shapes, *tensors[1:], **options)
    # A float64 value makes coordinates, softmax and sums float64, so that its tolerance is that of float64.
    expected = oracle_fused(case, tensors, inputs.padding_mask) if form == "fused" else oracle_classic(case, tensors)
    assert_close(output, expected, value_dtype)
    for gradient, tensor in zip(torch.autograd.grad(output.sum(), tensors), tensors, strict=True):
        assert gradient.dtype == tensor.dtype


@pytest.mark.parametrize("value_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_coordinate_is_not_rounded_to_the_dtype_of_the_value(run, value_dtype):
    # A ramp 400 wide: what is read tells the coordinate. In bfloat16 it could be wrong by 0.8.
    ramp = torch.arange(400) % 128  # exact in bfloat16
    value = ramp.to(value_dtype).reshape(1, 400, 1, 1)
    pixels = torch.tensor([3.25, 100.5, 127.0, 258.75, 301.25, 399.0])
    locations = ((pixels.double() + 0.5) / 400).float()
    locations = torch.stack([locations, torch.full_like(locations, 0.5)], dim=-1).reshape(1, 6, 1, 1, 1, 2)
    weights = torch.ones(1, 6, 1, 1, 1)
    output = run(multi_scale_deformable_attention, value, [(1, 400)], locations, weights)
    assert_close(output, [[[3.25], [100.5], [127.0], [2.75], [45.25], [15.0]]], value_dtype)


@pytest.mark.parametrize("value_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_offsets_are_added_to_references_in_float32(run, value_dtype):
    ramp = torch.arange(400) % 128
    value = ramp.to(value_dtype).reshape(1, 400, 1, 1)
    references = torch.tensor([[301.75 / 400, 0.5]]).reshape(1, 1, 2)
    offsets = torch.tensor([0.25, 0.0], dtype=value_dtype).reshape(1, 1, 1, 1, 1, 2)
    logits = torch.zeros(1, 1, 1, 1, dtype=value_dtype)
    output = run(deformable_attention, value, [(1, 400)], references, offsets, logits)
    assert_close(output, [[[301.5 - 256]]], value_dtype)


def test_sums_are_accumulated_in_float32(run):
    # 60,000 + 60,000 is beyond float16, the result is not; and one part in 4,096 is beyond its precision.
    reads = torch.tensor([60000.0, 60000.0, 60000.0, 1.0], dtype=torch.float16).reshape(1, 4, 1, 1)
    x = (torch.arange(4, dtype=torch.float16) + 0.5) / 4
    locations = torch.stack([x, torch.full_like(x, 0.5)], dim=-1).reshape(1, 1, 1, 1, 4, 2)
    weights = torch.tensor([1.0, 1.0, -2.0, 0.25], dtype=torch.float16).reshape(1, 1, 1, 1, 4)
    output = run(multi_scale_deformable_attention, reads, [(1, 4)], locations, weights)
    assert output.item() == 0.25


@pytest.mark.parametrize("double", ["value", "locations", "weights"])
def test_one_float64_input_makes_the_computation_float64(run, double):
    # 1 + 2^-30 - 1 is 0 in float32 in two of the three orders; and 1/3 of a row 2^12 wide is not exact there.
    dtypes = {name: torch.float64 if name == double else torch.float32 for name in ("value", "locations", "weights")}
    value = torch.tensor([1.0, 2.0**-30, 1.0, 0.0], dtype=dtypes["value"]).reshape(1, 4, 1, 1)
    at = [[0.125, 0.5], [0.375, 0.5], [0.625, 0.5]]
    locations = torch.tensor(at, dtype=dtypes["locations"]).reshape(1, 1, 1, 1, 3, 2)
    weights = torch.tensor([1.0, 1.0, -1.0], dtype=dtypes["weights"]).reshape(1, 1, 1, 1, 3)
    output = run(multi_scale_deformable_attention, value, [(1, 4)], locations, weights)
    assert output.item() == 2.0**-30
    assert output.dtype == dtypes["value"]


def test_a_float64_location_is_not_rounded_to_float32(run):
    value = torch.arange(4096.0).reshape(1, 4096, 1, 1)
    pixel = 1234.0 + 2.0**-12
    locations = torch.tensor([(pixel + 0.5) / 4096, 0.5], dtype=torch.float64).reshape(1, 1, 1, 1, 1, 2)
    output = run(multi_scale_deformable_attention, value, [(1, 4096)], locations, torch.ones(1, 1, 1, 1, 1))
    assert output.item() == pixel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("interpolation", "padding_mode"), MODES)
def test_half_precision_is_right_on_a_large_map(run, dtype, interpolation, padding_mode):
    # torch's own half-precision grid_sample on a CPU is wrong above about 32,768 elements a plane.
    height, width = 211, 203
    value = torch.randn(1, height * width, 1, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    pixels = [(0.3, 0.4), (201.6, 3.2), (100.3, 209.7), (57.8, 150.2), (202.4, 210.3), (250.0, -9.7)]
    at = torch.tensor([[x / width, y / height] for x, y in pixels])
    locations = at.reshape(1, -1, 1, 1, 1, 2)
    weights = torch.ones(1, len(pixels), 1, 1, 1)
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    output = run(multi_scale_deformable_attention, value, [(height, width)], locations, weights, **options)
    plane = value.reshape(height, width).tolist()
    expected = [[[read(plane, x, y, interpolation, padding_mode)] for x, y in at.tolist()]]
    # A float32 coordinate of a map 200 wide is wrong by about 200 * 6e-8, twice.
    torch.testing.assert_close(output.double(), torch.tensor(expected).double(), rtol=2**-8, atol=1e-4)


# Layout.


def spread(tensor):
    """Return a copy with gaps of NaN (or True) between its elements, so that no stride is the expected one."""
    wide = torch.full((*tensor.shape, 3), NAN if tensor.is_floating_point() else True, dtype=tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]


def reversed_axes(tensor):
    """Return a copy whose first axis is the fastest in memory."""
    axes = tuple(range(tensor.dim()))[::-1]
    return tensor.permute(axes).contiguous().permute(axes)


@pytest.mark.parametrize("layout", [spread, reversed_axes])
@pytest.mark.parametrize("name", ["encoder", "boxes with points per level"])
def test_inputs_may_be_non_contiguous(run, layout, name):
    case = named(name)
    inputs = inputs_of(case, torch.float32)
    shapes = inputs.spatial_shapes
    for entry_point, tensors, options in (
        (deformable_attention, inputs.fused_tensors, inputs.fused_options),
        (multi_scale_deformable_attention, inputs.classic_tensors, inputs.classic_options),
    ):
        plain = [tensor.clone().requires_grad_() for tensor in tensors]
        expected = run(entry_point, plain[0], shapes, *plain[1:], **options)
        grad_output = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
        expected_gradients = torch.autograd.grad(expected, plain, grad_output)

        laid_out = [layout(tensor).requires_grad_() for tensor in tensors]
        assert not any(tensor.is_contiguous() for tensor in laid_out)
        if options.get("padding_mask") is not None:
            options = {**options, "padding_mask": layout(options["padding_mask"])}
        actual = run(entry_point, laid_out[0], shapes, *laid_out[1:], **options)
        assert_close(actual, expected, torch.float32)
        gradients = torch.autograd.grad(actual, laid_out, layout(grad_output))
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
            assert_close(gradient, expected_gradient, torch.float32)


def test_inputs_may_be_expanded(run):
    _, (value, locations, weights) = sized()
    shapes = [(2, 3), (4, 1)]
    expanded = [value[:1].expand_as(value), locations[:, :1].expand_as(locations), weights[:, :, :1].expand_as(weights)]
    output = run(multi_scale_deformable_attention, expanded[0], shapes, *expanded[1:], num_points=2)
    copies = [tensor.detach().clone() for tensor in expanded]
    expected = run(multi_scale_deformable_attention, copies[0], shapes, *copies[1:], num_points=2)
    assert_close(output, expected, torch.float32)


def test_inputs_are_not_written_into(run):
    case = named("encoder")
    inputs = inputs_of(case, torch.float32)
    tensors = [tensor.clone() for tensor in inputs.fused_tensors]
    mask = inputs.padding_mask.clone()
    run(deformable_attention, tensors[0], inputs.spatial_shapes, *tensors[1:], padding_mask=mask)
    for tensor, original in zip(tensors, inputs.fused_tensors, strict=True):
        assert torch.equal(tensor, original)
    assert torch.equal(mask, inputs.padding_mask)
