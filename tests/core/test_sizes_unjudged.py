"""Sizes that nobody judged: the maths on a tensor of wild numbers reads nothing outside, and is right where it fits."""

import itertools
import math

import pytest
import torch

import oracle
from cases import CASES, case_id, grad_output_of, inputs_of, named
from deform_attn import multi_scale_deformable_attention, reference
from tolerances import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")
MODES = pytest.mark.parametrize(
    "modes", list(itertools.product(["bilinear", "nearest"], ["zeros", "border"])), ids="-".join
)
N, Q, M, D, S = 1, 3, 2, 2, 23

# Each gives 23 pixels another number of rows than they have, or none that any map could have.
WILD = {
    "too many pixels": [(4, 5), (3, 7), (2, 2)],
    "too few pixels": [(2, 3), (1, 4), (2, 2)],
    "all pixels in the first level and more levels after": [(23, 1), (3, 5), (2, 4)],
    "a last level that starts within and ends without": [(3, 5), (1, 4), (5, 7)],
    "a negative height": [(-3, 4), (3, 5), (2, 4)],
    "a negative width": [(3, 5), (2, -4), (2, 4)],
    "two negative sides": [(3, 5), (-2, -4), (2, 4)],
    "minus one by minus one": [(-1, -1), (-1, 5), (3, 5)],
    "a negative and an empty side": [(0, -4), (-4, 0), (3, 5)],
    "the smallest int64": [(-(2**63), 2), (-(2**63), -(2**63)), (3, 5)],
    "the largest int64": [(2**63 - 1, 2**63 - 1), (3, 5), (2**63 - 1, 1)],
    "a side of 2^31": [(2**31, 2), (3, 5), (1, 2**31)],
    "sides that are small in their lower 32 bits": [(2**32 + 3, 5), (2**32 + 3, 2**32 + 5), (3, 5)],
    "sides whose product is 0 in 64 bits": [(2**32, 2**32), (3, 5), (2, 4)],
    "the longest sides": [(3, 5), (2**31 - 1, 2**31 - 1), (2, 4)],
    "a long row": [(1, 2**31 - 1), (3, 5), (2, 4)],
    "a long column": [(2**31 - 1, 1), (3, 5), (2, 4)],
    "a product of 2^32": [(2**16, 2**16), (3, 5), (2, 4)],
    "pixels that add up to 0 in 32 bits": [(3, 5), (2**16, 2**15), (2**16, 2**15), (3, 5)],
    "pixels that add up to 0 in 64 bits": [*[(2**30, 2**30)] * 16, (3, 5), (2, 4)],
    "pixels that add up to a negative number in 64 bits": [*[(2**31 - 1, 2**31 - 1)] * 3, (3, 5)],
    "one below 0 in 64 bits and back": [(3, 5), *[(2**30, 2**30)] * 15, (2**30, 2**30 - 1), (2**30, 1), (2, 4)],
    "all empty": [(0, 0), (0, 5), (4, 0)],
}
BY_NAME = pytest.mark.parametrize("sizes", WILD.values(), ids=[name.replace(" ", "-") for name in WILD])


def kept(sizes):
    """Return the sizes with (0, 0) for each level that is empty, be it for a side that no map has."""
    return [(H, W) if 0 < H < 2**31 and 0 < W < 2**31 else (0, 0) for H, W in sizes]


def loops(tensors, sizes, num_points, modes, grad_output):
    """Return the classic op and its gradients by value, locations and weights as scalar loops; no pixel is above S."""
    sizes = kept(sizes)
    value, locations, weights, pulls = (tensor.tolist() for tensor in (*tensors, grad_output))
    shape = tensors[2].shape
    batch, pixels, heads, channels = tensors[0].shape
    starts = oracle.level_starts(sizes)
    levels = oracle.level_of_each_point(num_points)
    output = torch.zeros(*shape[:2], heads * channels).tolist()
    by_value, by_location, by_weight = (torch.zeros_like(tensor).tolist() for tensor in tensors)
    for n, q, m, t in itertools.product(range(batch), range(shape[1]), range(heads), range(len(levels))):
        (height, width), weight = sizes[levels[t]], weights[n][q][m][t]
        if height == 0:
            continue
        for row, column, part, slope_x, slope_y in oracle.corners(height, width, *locations[n][q][m][t], *modes):
            index = starts[levels[t]] + row * width + column  # ints of Python, which do not overflow
            if index >= pixels:
                continue
            for d in range(channels):
                pixel, pull = value[n][index][m][d], pulls[n][q][m * channels + d]
                output[n][q][m * channels + d] += weight * part * pixel
                by_value[n][index][m][d] += pull * weight * part
                by_weight[n][q][m][t] += pull * part * pixel
                by_location[n][q][m][t][0] += pull * weight * slope_x * pixel
                by_location[n][q][m][t][1] += pull * weight * slope_y * pixel
    return [torch.tensor(x, dtype=torch.float64) for x in (output, by_value, by_location, by_weight)]


def generator_of(sizes):
    return torch.Generator().manual_seed(len(sizes) + sum(H + W for H, W in sizes) % 1000)


def sides_of(sizes, num_points):
    """Return (W, H) of the level of each point, 1 where it is empty, `[T, 2]`."""
    levels = oracle.level_of_each_point(num_points)
    return torch.tensor([kept(sizes)[level][::-1] for level in levels], dtype=torch.float64).clamp(min=1)


def draw(sizes):
    """Return value, locations, weights, points of each level and a gradient; half of the points are at few pixels."""
    generator = generator_of(sizes)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)

    num_points = [2 + level % 2 for level in range(len(sizes))]
    T = sum(num_points)
    near = uniform(-1.5, 8, N, Q, M, T, 2) / sides_of(sizes, num_points)
    anywhere = uniform(-0.3, 1.3, N, Q, M, T, 2)
    locations = torch.where(uniform(0, 1, N, Q, M, T, 1) < 0.7, near, anywhere)
    value, weights = uniform(-2, 2, N, S, M, D), uniform(-1, 1, N, Q, M, T)
    return (value, locations, weights), num_points, uniform(-1, 1, N, Q, M * D)


def with_gradients(function, tensors, grad_output):
    """Return what the function gives, and its gradients by the tensors."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    gradients = torch.autograd.grad(output, leaves, grad_output, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True)]
    return [output.detach(), *gradients]


def classic(sizes, num_points, modes, tensors, grad_output):
    def maths(value, locations, weights):
        return reference.multi_scale_deformable_attention(value, sizes, locations, weights, num_points, *modes)

    return with_gradients(maths, tensors, grad_output)


def check(actual, expected, sizes, num_points):
    """Compare output and gradients; those by locations per pixel, as a map 2^31 wide has slopes of 2^31."""
    actual, expected = list(actual), list(expected)
    sides = sides_of(sizes, num_points)
    actual[2], expected[2] = actual[2] / sides, expected[2] / sides
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, torch.float64)


@MODES
@pytest.mark.parametrize("name", ["encoder", "empty levels", "a level without points", "a row and a column"])
def test_the_loops_of_this_file_are_the_oracle_where_sizes_fit(name, modes):
    case = named(name)
    inputs, grad_output = inputs_of(case, torch.float64), grad_output_of(case, torch.float64)
    shape = inputs.attention_logits.shape
    tensors = inputs.value, inputs.sampling_locations.reshape(*shape, 2), inputs.attention_weights.reshape(shape)
    lists = [tensor.tolist() for tensor in tensors]
    arguments = lists[0], case.spatial_shapes, *lists[1:], case.num_points
    expected = [
        oracle.multi_scale_deformable_attention(*arguments, *modes),
        *oracle.multi_scale_deformable_attention_gradients(*arguments, grad_output.tolist(), *modes),
    ]
    actual = loops(tensors, case.spatial_shapes, case.num_points, modes, grad_output)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, torch.tensor(b, dtype=torch.float64), torch.float64)


@MODES
@BY_NAME
def test_of_wild_sizes_empty_levels_and_pixels_outside_read_0_and_pass_no_gradient(sizes, modes):
    tensors, num_points, grad_output = draw(sizes)
    expected = loops(tensors, sizes, num_points, modes, grad_output)
    actual = classic(torch.tensor(sizes), num_points, modes, tensors, grad_output)
    check(actual, expected, sizes, num_points)


def test_the_wild_draws_read_pixels_within_and_without():
    for sizes in WILD.values():
        tensors, num_points, grad_output = draw(sizes)
        output, by_value, _, _ = loops(tensors, sizes, num_points, ("bilinear", "zeros"), grad_output)
        levels = [level for level in kept(sizes) if level != (0, 0)]
        starts = oracle.level_starts(kept(sizes))
        within = any(size != (0, 0) and start < S for size, start in zip(kept(sizes), starts, strict=True))
        assert (output != 0).any() == (by_value != 0).any() == within, levels


@pytest.mark.parametrize("modes", [("bilinear", "zeros"), ("nearest", "border")], ids="-".join)
@pytest.mark.parametrize("coordinates", [2, 4])
@BY_NAME
def test_of_wild_sizes_the_fused_op_is_the_classic_one_of_its_locations(sizes, coordinates, modes):
    (value, near, logits), num_points, grad_output = draw(sizes)
    generator, sides = generator_of(sizes), sides_of(sizes, num_points)
    levels, counts = oracle.level_of_each_point(num_points), torch.tensor(num_points, dtype=torch.float64)
    first = [levels.index(level) for level in range(len(sizes))]
    references = near[:, :, 0, first]  # [N, Q, L, 2]
    if coordinates == 4:
        boxes = torch.rand(N, Q, len(sizes), 2, dtype=torch.float64, generator=generator) * 4 / sides[first]
        references = torch.cat([references, boxes], -1)
    offsets = torch.randn(near.shape, dtype=torch.float64, generator=generator)
    mask = torch.rand(N, S, generator=generator) < 0.2

    def composed(value, references, offsets, logits):
        value, at = value.masked_fill(mask[:, :, None, None], 0), references[:, :, None, levels]
        if coordinates == 2:
            locations = at + offsets / sides
        else:
            locations = at[..., :2] + offsets / counts[levels][:, None] * at[..., 2:] * 0.75
        return value, locations, logits.softmax(-1)

    leaves = [tensor.clone().requires_grad_() for tensor in (value, references, offsets, logits)]
    middle = composed(*leaves)
    output, *gradients = loops([x.detach() for x in middle], sizes, num_points, modes, grad_output)
    expected = [output, *torch.autograd.grad(middle, leaves, gradients)]

    def maths(value, references, offsets, logits):
        sizes_tensor, rest = torch.tensor(sizes), (num_points, mask, 0.75, *modes)
        return reference.deformable_attention(value, sizes_tensor, references, offsets, logits, *rest)

    actual = with_gradients(maths, leaves, grad_output)
    for results in (actual, expected):
        results[2] = results[2] / sides[first].repeat(1, coordinates // 2)  # gradients per pixel
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, torch.float64)


@MODES
@pytest.mark.parametrize("far", [1e18, 1e300, 1.7e308, math.inf])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("sizes", [WILD["the longest sides"], WILD["too many pixels"]], ids=["longest", "many"])
def test_a_location_that_no_int_holds_reads_nothing_outside(sizes, sign, far, modes):
    (value, locations, weights), num_points, grad_output = draw(sizes)
    locations[:, :, :, ::2, 0] = sign * far
    locations[:, :, :, 1::3, 1] = -sign * far
    tensors = value, locations, weights
    expected = loops(tensors, sizes, num_points, modes, grad_output)
    check(classic(torch.tensor(sizes), num_points, modes, tensors, grad_output), expected, sizes, num_points)


@MODES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@BY_NAME
def test_in_a_short_dtype_wild_sizes_read_finite_numbers(sizes, dtype, modes):
    tensors, num_points, grad_output = draw(sizes)
    tensors = [tensor.to(torch.float32 if i else dtype) for i, tensor in enumerate(tensors)]
    tensors[0] += 3  # positive: zeros are what was not read
    results = classic(torch.tensor(sizes), num_points, modes, tensors, grad_output.to(dtype))
    assert all(result.isfinite().all() for result in results)
    rows = sum(H * W for H, W in kept(sizes))
    assert (results[1][:, min(rows, S) :] == 0).all()


@pytest.mark.parametrize("modes", [("bilinear", "zeros"), ("nearest", "border")], ids="-".join)
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.uint8, [(20, 20), (3, 5), (2, 4)]),  # 400 pixels are 144 in eight bits
        (torch.uint8, [(255, 255), (3, 5), (2, 4)]),
        (torch.int8, [(-1, 5), (16, 16), (3, 5)]),  # 256 pixels are 0
        (torch.int16, [(2**15 - 1, 2), (3, 5), (-(2**15), 4)]),
        (torch.int16, [(256, 256), (3, 5), (2, 4)]),
        (torch.int32, [(2**16, 2**16), (3, 5), (2, 4)]),
        (torch.int32, [(2**31 - 1, 2**31 - 1), (3, 5), (2, 4)]),
        (torch.int32, [(-(2**31), -(2**31)), (3, 5), (2, 4)]),
        (torch.uint16, [(256, 256), (3, 5), (2, 4)]),
        (torch.uint32, [(2**32 - 1, 2), (3, 5), (2**16, 2**16)]),
        (torch.uint64, [(2**64 - 1, 2), (3, 5), (2**63, 2**63)]),
    ],
    ids=str,
)
def test_pixels_are_counted_in_64_bits_whatever_the_dtype_of_the_sizes(dtype, sizes, modes):
    tensors, num_points, grad_output = draw(sizes)
    expected = loops(tensors, sizes, num_points, modes, grad_output)
    actual = classic(torch.tensor(sizes, dtype=dtype), num_points, modes, tensors, grad_output)
    check(actual, expected, sizes, num_points)


@MODES
def test_random_sizes_of_all_magnitudes_are_as_the_loops_have_them(modes):
    sides = [-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 5, 23, 2**16, 2**30, 2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1]
    chances = torch.tensor([1.0 if side < 1 or side > 23 else 6.0 for side in sides])
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        drawn = torch.multinomial(chances, 8, replacement=True, generator=generator).tolist()
        sizes = [(sides[a], sides[b]) for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
        tensors, num_points, grad_output = draw(sizes)
        expected = loops(tensors, sizes, num_points, modes, grad_output)
        check(classic(torch.tensor(sizes), num_points, modes, tensors, grad_output), expected, sizes, num_points)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize(
    "name", ["a last level that starts within and ends without", "pixels that add up to 0 in 64 bits"]
)
def test_second_derivatives_of_wild_sizes_are_those_of_finite_differences(name, padding_mode):
    sizes = torch.tensor(WILD[name])
    tensors, num_points, _ = draw(WILD[name])
    # Near pixels only: at a position of 2^30, a step of finite differences is many pixels.
    value, locations, weights = tensors[0][:, :, :1, :1], *(x[:, :1, :1, -num_points[-1] :] for x in tensors[1:])
    counts = [0] * (len(sizes) - 1) + num_points[-1:]
    leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]

    def maths(value, locations, weights):
        return reference.multi_scale_deformable_attention(
            value, sizes, locations, weights, counts, "bilinear", padding_mode
        )

    assert torch.autograd.gradcheck(maths, leaves)
    assert torch.autograd.gradgradcheck(maths, leaves)


@pytest.mark.parametrize("modes", [("bilinear", "zeros"), ("bilinear", "border"), ("nearest", "zeros")], ids="-".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES[::2], ids=case_id)
def test_where_sizes_fit_a_tensor_of_them_gives_the_bits_that_pairs_give(case, dtype, modes):
    inputs, grad_output = inputs_of(case, dtype), grad_output_of(case, dtype)
    shape = inputs.attention_logits.shape
    references = inputs.reference_points if inputs.reference_points.ndim == 4 else inputs.reference_points[:, :, None]
    locations, weights = inputs.sampling_locations.reshape(*shape, 2), inputs.attention_weights.reshape(shape)
    fused = inputs.value, references, inputs.sampling_offsets.reshape(*shape, 2), inputs.attention_logits
    rest = case.num_points, inputs.padding_mask, case.offset_scale, *modes

    def both(sizes):
        def maths(value, *others):
            return reference.deformable_attention(value, sizes, *others, *rest)

        return [
            *classic(sizes, case.num_points, modes, (inputs.value, locations, weights), grad_output),
            *with_gradients(maths, fused, grad_output),
        ]

    expected = both(case.spatial_shapes)
    for sizes in (torch.tensor(case.spatial_shapes), torch.tensor(case.spatial_shapes, dtype=torch.int32).T.clone().T):
        for a, b in zip(both(sizes), expected, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@MODES
def test_a_nan_location_on_a_level_that_ends_outside_makes_its_channels_nan_and_nothing_else(modes):
    sizes = WILD["too many pixels"]
    (value, locations, weights), num_points, grad_output = draw(sizes)
    expected = loops((value, locations, weights), sizes, num_points, modes, grad_output)[0]
    locations[0, 2, 0, -1, 0] = math.nan
    output, *gradients = classic(torch.tensor(sizes), num_points, modes, (value, locations, weights), grad_output)
    assert output[0, 2, :D].isnan().all()
    output[0, 2, :D] = expected[0, 2, :D]
    assert_close(output, expected, torch.float64)
    assert gradients[0].isfinite().all()
    assert (gradients[1][0, 2, 0, -1] == 0).all()


@pytest.mark.parametrize("name", ["too many pixels", "the longest sides", "a negative height"])
@pytest.mark.parametrize("call", [reference.multi_scale_deformable_attention, multi_scale_deformable_attention])
def test_on_meta_no_number_of_the_sizes_is_read(name, call):
    (value, locations, weights), num_points, _ = draw(WILD[name])
    leaves = [tensor.to("meta").requires_grad_() for tensor in (value, locations, weights)]
    sizes = torch.tensor(WILD[name], device="meta")
    output = call(leaves[0], sizes, *leaves[1:], num_points=num_points)
    assert (output.device.type, output.shape) == ("meta", (N, Q, M * D))
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves]
