"""The GPU kernels in Triton's interpreter: numbers that are not finite, wrong sizes, orders, and gradients left out."""

import pytest
import torch
from interpreted import ENTRY_POINTS, INTERPRETED

from against_reference import BAD, classic, compare, fused, poisoned, spread_locations
from cases import inputs_of, named
from deform_attn import multi_scale_deformable_attention
from deform_attn.backends import registry
from deform_attn.backends.triton import deterministic
from deform_attn.backends.triton.launch import Launch
from deform_attn.checks import SamplingInputs
from deform_attn.torch_ops import meant
from deform_attn.torch_ops.schema import SAMPLE, SAMPLE_BY_TENSOR
from tolerances import assert_close

pytestmark = INTERPRETED

SHAPES, COUNTS = ((5, 7), (0, 3), (3, 4)), (4, 1, 2)
MODES = [("bilinear", "zeros"), ("bilinear", "border"), ("nearest", "zeros"), ("nearest", "border")]
N, Q, M, D = 1, 24, 2, 3


def generator(seed):
    return torch.Generator().manual_seed(seed)


def bad_call(seed, rate):
    """Return value, locations and weights of which some are NaN or infinite; many locations are on centres."""
    g = generator(seed)
    value = poisoned(torch.randn(N, 47, M, D, generator=g), g, rate)
    locations = poisoned(spread_locations(g, N, Q, M, SHAPES, COUNTS), g, rate)
    weights = poisoned(torch.rand(N, Q, M, 7, generator=g), g, rate)
    return value, locations, weights


def not_finite(tensors):
    return [~tensor.isfinite() for tensor in tensors]


@pytest.mark.parametrize("modes", MODES, ids="-".join)
def test_what_is_not_finite_goes_where_the_reference_lets_it_go(modes, bands):
    options = {"num_points": COUNTS, "interpolation": modes[0], "padding_mode": modes[1]}
    tensors = bad_call(3, 0.04)
    function = classic(SHAPES)
    found = {}
    for backend in ("triton", "reference"):
        leaves = [bands.around(tensor).requires_grad_() for tensor in tensors]
        output = function(*leaves, backend=backend, **options)
        pull = torch.randn(output.shape, generator=generator(1))
        found[backend] = [output.detach(), *torch.autograd.grad(output, leaves, pull)]
    assert all(bad.any() for bad in not_finite(found["reference"][:2]))
    for actual, wanted in zip(*found.values(), strict=True):
        finite = wanted.isfinite()
        assert torch.equal(actual.isfinite(), finite)
        assert_close(actual[finite], wanted[finite].double(), torch.float32)


@pytest.mark.parametrize("pull", BAD)
def test_a_bad_gradient_of_the_output_goes_where_the_reference_lets_it_go(pull):
    g = generator(5)
    value, weights = torch.randn(N, 47, M, D, generator=g), torch.rand(N, Q, M, 7, generator=g)
    locations = spread_locations(g, N, Q, M, SHAPES, COUNTS)
    found = {}
    for backend in ("triton", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
        output = classic(SHAPES)(*leaves, backend=backend, num_points=COUNTS)
        grad_output = torch.randn(output.shape, generator=generator(1))
        grad_output[0, ::5, 1] = pull
        found[backend] = torch.autograd.grad(output, leaves, grad_output)
    for actual, wanted in zip(*found.values(), strict=True):
        finite = wanted.isfinite()
        assert not finite.all()
        assert torch.equal(actual.isfinite(), finite)
        assert_close(actual[finite], wanted[finite].double(), torch.float32)


@pytest.mark.parametrize("size", [2, 4])
def test_references_offsets_and_logits_that_are_not_finite_are_those_of_the_reference(size):
    g = generator(7)
    references = poisoned(torch.rand(N, Q, 3, size, generator=g), g, 0.04)
    offsets = poisoned(torch.randn(N, Q, M, 7, 2, generator=g), g, 0.03)
    logits = torch.randn(N, Q, M, 7, generator=g)
    logits[0, 3, 1, 2], logits[0, 4] = float("nan"), -float("inf")
    tensors = torch.randn(N, 47, M, D, generator=g), references, offsets, logits
    compare(fused(SHAPES), tensors, torch.float32, backend="triton", num_points=COUNTS)


def test_sizes_on_the_device_that_are_wrong_read_nothing_outside_of_value(bands):
    g = generator(9)
    value, weights = torch.randn(N, 12, M, D, generator=g), torch.rand(N, 8, M, 4, generator=g)
    locations = torch.rand(N, 8, M, 4, 2, generator=g) * 1.4 - 0.2
    for sizes in ([(3, 4), (9, 9)], [(-1, 4), (3, 4)], [(2**31, 2**31), (3, 4)], [(2**31 - 1, 2**31 - 1), (3, 4)]):
        args = torch.tensor(sizes), locations, weights, [2, 2], "bilinear", "border"
        leaf = bands.around(value).requires_grad_()
        found = []
        for backend in ("triton", "reference"):
            output = by_tensor(backend, leaf, *args)
            found.append([output, *torch.autograd.grad(output, [leaf], torch.ones_like(output))])
        for actual, wanted in zip(*found, strict=True):
            assert_close(actual, wanted.double(), torch.float32)


def by_tensor(backend, value, sizes, locations, weights, counts, *modes):
    return registry.get(backend).sample(SamplingInputs(value, sizes, locations, weights, tuple(counts), *modes))


def test_the_order_of_queries_and_the_size_of_tiles_change_no_bit():
    case = [(9, 13), (5, 3), (1, 2)]
    g = generator(11)
    pixels = sum(H * W for H, W in case)
    value, weights = torch.randn(1, pixels, 1, 4, generator=g), torch.rand(1, pixels, 1, 3, 2, generator=g)
    locations = torch.rand(1, pixels, 1, 3, 2, 2, generator=g)
    whole = multi_scale_deformable_attention(value, case, locations, weights, backend="triton")
    parts = [
        multi_scale_deformable_attention(value, case, locations[:, q], weights[:, q], backend="triton")
        for q in (slice(0, 70), slice(70, pixels))
    ]
    assert torch.equal(whole, torch.cat(parts, 1))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_only_the_gradients_that_are_asked_for_are_made(entry_point, monkeypatch):
    inputs = inputs_of(named("small points"), torch.float32)
    tensors = inputs.fused_tensors if entry_point == "fused" else inputs.classic_tensors
    options = inputs.fused_options if entry_point == "fused" else inputs.classic_options
    made = []
    launch = Launch._launch

    def seen(self, backward, given, outputs, want, *known):
        made.append([tensor is not None for tensor in outputs])
        launch(self, backward, given, outputs, want, *known)

    monkeypatch.setattr(Launch, "_launch", seen)
    places = [0, 3, 1, 2] if entry_point == "fused" else [0, 1, 2]  # of value, references, offsets, logits
    for i in range(len(tensors)):
        leaves = [tensor.clone().requires_grad_(i == j) for j, tensor in enumerate(tensors)]
        output = ENTRY_POINTS[entry_point](leaves[0], inputs.spatial_shapes, *leaves[1:], **options, backend="triton")
        torch.autograd.grad(output, leaves[i], torch.ones_like(output))
        assert made[-1] == [place == places[i] for place in range(4)]


@pytest.mark.parametrize("case", ["tiny points", "tiny boxes"])
def test_first_and_second_derivatives_are_those_of_finite_differences(case):
    inputs = inputs_of(named(case), torch.float64)
    value, *others = [tensor.clone().requires_grad_() for tensor in inputs.fused_tensors]

    def op(*tensors):
        return ENTRY_POINTS["fused"](
            tensors[0], inputs.spatial_shapes, *tensors[1:], **inputs.fused_options, backend="triton"
        )

    assert torch.autograd.gradcheck(op, (value, *others), fast_mode=True)
    assert torch.autograd.gradgradcheck(op, (value, *others), fast_mode=True)


DETERMINISTIC = [
    ("fused", "one point", "zeros"),
    ("classic", "empty levels", "border"),
    ("fused", "boxes with points per level", "zeros"),
]


@pytest.mark.parametrize(("entry_point", "name", "padding_mode"), DETERMINISTIC)
def test_the_deterministic_gradient_of_value_is_that_of_the_reference_and_has_no_atomic_sums(
    entry_point, name, padding_mode, bands, monkeypatch
):
    inputs = inputs_of(named(name), torch.float32)
    tensors = inputs.fused_tensors if entry_point == "fused" else inputs.classic_tensors
    options = inputs.fused_options if entry_point == "fused" else inputs.classic_options
    wanted = []
    launch = Launch._launch

    def seen(self, backward, given, outputs, want, *known):
        wanted.append(want)
        launch(self, backward, given, outputs, want, *known)

    monkeypatch.setattr(Launch, "_launch", seen)
    found = {}
    for backend in ("triton", "reference"):
        leaves = [bands.around(tensor).requires_grad_() for tensor in tensors]
        output = ENTRY_POINTS[entry_point](
            leaves[0], inputs.spatial_shapes, *leaves[1:], **options, padding_mode=padding_mode, backend=backend
        )
        pull = torch.randn(output.shape, generator=generator(13))
        torch.use_deterministic_algorithms(True)
        try:
            found[backend] = torch.autograd.grad(output, leaves, pull)
        finally:
            torch.use_deterministic_algorithms(False)
    assert [bool(want and want[0]) for want in wanted] == [False, False]
    for actual, wanted_grad in zip(*found.values(), strict=True):
        assert_close(actual, wanted_grad.double(), torch.float32)


def test_the_deterministic_gradient_of_parts_is_that_of_the_whole(monkeypatch):
    inputs = inputs_of(named("one point"), torch.float32)
    value, locations, weights = inputs.classic_tensors
    found = []
    for most in (deterministic.MOST_POINTS, 12, 4):
        monkeypatch.setattr(deterministic, "MOST_POINTS", most)
        leaf = value.clone().requires_grad_()
        output = multi_scale_deformable_attention(leaf, inputs.spatial_shapes, locations, weights, backend="triton")
        torch.use_deterministic_algorithms(True)
        try:
            found.append(torch.autograd.grad(output, leaf, torch.ones_like(output))[0])
        finally:
            torch.use_deterministic_algorithms(False)
    for part in found[1:]:
        assert_close(part, found[0].double(), torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # read by the check itself
def test_opcheck_passes_where_the_interpreter_is_meant():
    inputs = inputs_of(named("tiny boxes"), torch.float32)
    value, locations, weights = (tensor.clone().requires_grad_() for tensor in inputs.classic_tensors)
    case = named("tiny boxes")
    flat = [size for pair in case.spatial_shapes for size in pair]
    points = locations.detach().flatten(3, 4).requires_grad_(), weights.detach().flatten(3, 4).requires_grad_()
    with meant.meaning("triton"):
        for op, sizes in ((SAMPLE, flat), (SAMPLE_BY_TENSOR, torch.tensor(case.spatial_shapes))):
            torch.library.opcheck(op.forward, (value, sizes, *points, list(case.num_points), "bilinear", "zeros"))
