"""No address reaches the CPU kernels but that of numbers in memory, and none of their reads or writes leaves a map."""

import math

import pytest
import torch

from deform_attn import deformable_attention, multi_scale_deformable_attention
from deform_attn.backends import remembered
from deform_attn.backends.kinds import Kinds
from deform_attn.torch_ops import schema

SHAPES = [(2, 3), (4, 1)]
MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
FUSED = "value", "reference_points", "sampling_offsets", "attention_logits", "padding_mask"
CLASSIC = "value", "sampling_locations", "attention_weights"
EACH = [("fused", name) for name in FUSED] + [("classic", name) for name in CLASSIC]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(remembered, "_calls", Kinds())


def tensors_of(form):
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2, 10, 3, 5, generator=generator)
    points, weights = torch.rand(2, 7, 3, 2, 2, 2, generator=generator), torch.rand(2, 7, 3, 2, 2, generator=generator)
    if form == "classic":
        return dict(zip(CLASSIC, (value, points, weights), strict=True))
    mask = torch.rand(2, 10, generator=generator) < 0.3
    references = torch.rand(2, 7, 2, 2, generator=generator)
    return dict(zip(FUSED, (value, references, points, weights.flatten(3), mask), strict=True))


def call(form, tensors, **options):
    if form == "classic":
        return multi_scale_deformable_attention(tensors["value"], SHAPES, *list(tensors.values())[1:], **options)
    value, *others, mask = tensors.values()
    return deformable_attention(value, SHAPES, *others, padding_mask=mask, **options)


def leaves(tensors):
    return [tensor for tensor in tensors.values() if tensor.requires_grad]


# Zeros without memory.


@pytest.mark.parametrize(("form", "name"), EACH)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("warm", [False, True])
def test_zeros_without_memory_are_read_as_zeros(form, name, mode, warm):
    tensors = tensors_of(form)
    with MODES[mode]():
        for _ in range(3 if warm else 0):
            call(form, tensors)
        zeros = torch._efficientzerotensor(tensors[name].shape, dtype=tensors[name].dtype)
        assert zeros.data_ptr() == 0
        actual = [call(form, {**tensors, name: zeros}) for _ in range(3)]
        expected = call(form, {**tensors, name: torch.zeros_like(tensors[name])}, backend="reference")
    for output in actual:
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(("form", "name"), [each for each in EACH if each[1] != "padding_mask"])
def test_zeros_without_memory_pass_gradients_on(form, name):
    gradients = []
    for backend, zeros in (("native", torch._efficientzerotensor), ("reference", torch.zeros)):
        tensors = tensors_of(form)
        tensors[name] = zeros(tensors[name].shape)
        for tensor in tensors.values():
            tensor.requires_grad_(tensor.dtype != torch.bool)
        output = call(form, tensors, backend=backend)
        gradients.append(torch.autograd.grad(output.sum(), leaves(tensors)))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("form", ["fused", "classic"])
def test_a_gradient_of_zeros_without_memory_gives_zeros(form):
    for _ in range(3):
        tensors = tensors_of(form)
        for tensor in tensors.values():
            tensor.requires_grad_(tensor.dtype != torch.bool)
        output = call(form, tensors)
        for grad in torch.autograd.grad(output, leaves(tensors), torch._efficientzerotensor(output.shape)):
            assert not grad.any()


# Storages that do not hold what sizes and strides say.


@pytest.mark.parametrize(("form", "name"), EACH)
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("kept", [0, 8])
@pytest.mark.parametrize("offset", [0, 3])
def test_a_storage_freed_or_shrunk_under_its_tensor_is_refused_by_name(form, name, warm, kept, offset):
    tensors = tensors_of(form)
    whole = torch.zeros(tensors[name].numel() + offset, dtype=tensors[name].dtype)
    tensors[name] = whole[offset:].view(tensors[name].shape)
    for _ in range(2 if warm else 0):
        call(form, tensors)
    whole.untyped_storage().resize_(kept)
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=rf"^{name}: expected a tensor of \d+ bytes in memory.*Allocate it again"
        ):
            call(form, tensors)


@pytest.mark.parametrize("place", [0, 2, 3])
def test_a_freed_tensor_that_the_op_would_copy_is_refused_by_name(place):
    call = [*arguments([(2, 3)], [2]), [2], "bilinear", "zeros"]
    call[place] = call[place].transpose(1, -1).contiguous().transpose(1, -1)
    call[place].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=rf"^{schema.SAMPLE.names[place]}: expected a tensor of \d+ bytes in memory"):
        schema.SAMPLE.forward(*call)


@pytest.mark.parametrize("form", ["fused", "classic"])
def test_a_storage_freed_between_the_passes_is_refused_by_name(form):
    for _ in range(2):
        tensors = tensors_of(form)
        tensors["value"].requires_grad_()
        output = call(form, tensors)
        tensors["value"].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=r"^value: expected a tensor of 1200 bytes in memory"):
            output.sum().backward()


@pytest.mark.parametrize(("form", "name"), EACH)
def test_an_expanded_tensor_needs_no_more_memory_than_it_has(form, name):
    tensors = tensors_of(form)
    tensors[name] = tensors[name][:1].expand_as(tensors[name])
    expected = call(form, tensors, backend="reference")
    for _ in range(2):
        torch.testing.assert_close(call(form, tensors), expected)


# Tensors whose numbers lie elsewhere or nowhere.


@pytest.mark.parametrize(("form", "name"), [each for each in EACH if each[1] != "padding_mask"])
def test_negative_views_and_subclasses_are_read_as_what_they_are(form, name):
    class Other(torch.Tensor):
        pass

    tensors = tensors_of(form)
    expected = call(form, tensors, backend="reference")
    for change in (lambda tensor: torch._neg_view(-tensor), lambda tensor: tensor.as_subclass(Other)):
        for _ in range(2):
            torch.testing.assert_close(
                call(form, {**tensors, name: change(tensors[name])}), expected, check_stride=False
            )


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn])
def test_the_op_itself_never_reads_tensors_whose_numbers_lie_elsewhere(change):
    value, shapes, locations, weights = arguments([(2, 3)], [2])
    options = [2], "bilinear", "zeros"
    for wrong in ((change(value[0, 0]), locations), (value, change(locations[0, 0, 0]))):
        with pytest.raises((RuntimeError, NotImplementedError)):
            schema.SAMPLE.forward(wrong[0], shapes, wrong[1], weights, *options)


# Sizes.


def arguments(shapes, counts):
    pixels, points = sum(H * W for H, W in shapes), sum(counts)
    value = torch.ones(1, pixels, 1, 2)
    return [
        value,
        [size for pair in shapes for size in pair],
        torch.rand(1, 3, 1, points, 2),
        torch.rand(1, 3, 1, points),
    ]


@pytest.mark.parametrize(
    ("shapes", "counts"),
    [
        ([2, 3, 2, 2], [1, 1]),  # more pixels than value has
        ([2, 2, 1, 1], [1, 1]),  # fewer
        ([2, 3, 1, 1], [1, 1]),
        ([-2, -3, 0, 0], [1, 1]),
        ([2**32, 2**32, 2, 3], [1, 1]),  # pixels that overflow to 0
        ([2, 3, 0, 2**31], [1, 1]),  # a side that no map has, though of an empty one
        ([2, 3, 0, 1], [1, 2]),  # more points than there are
        ([2, 3, 0, 1], [-1, 3]),
    ],
)
def test_the_op_refuses_sizes_that_are_not_those_of_its_tensors(shapes, counts):
    value, _, locations, weights = arguments([(2, 3)], [2])
    options = counts, "bilinear", "zeros"
    with pytest.raises(RuntimeError, match=r"^(spatial_shapes|num_points): expected"):
        schema.SAMPLE.forward(value, shapes, locations, weights, *options)
    with pytest.raises(RuntimeError, match=r"^(spatial_shapes|num_points): expected"):
        schema.SAMPLE.backward(torch.ones(1, 3, 2), value, shapes, locations, weights, *options, [True] * 3)


def test_a_long_text_of_a_stranger_is_cut_between_its_characters():
    value, shapes, locations, weights = arguments([(2, 3)], [2])
    for option in ("a" + "é" * 80, "é" * 80, "x" * 3000, "a" + "é" * 3000):
        with pytest.raises(
            RuntimeError, match=r"^interpolation: expected one of 'bilinear', 'nearest', got '[axé]{39,80}'"
        ):
            schema.SAMPLE.forward(value, shapes, locations, weights, [2], option, "zeros")


def test_the_op_refuses_tensors_whose_shapes_do_not_agree():
    value, shapes, locations, weights = arguments([(2, 3)], [2])
    options = [2], "bilinear", "zeros"
    with pytest.raises(RuntimeError, match=r"^sampling_locations: expected \[1, 3, 1, 2, 2\]"):
        schema.SAMPLE.forward(value, shapes, locations.expand(2, -1, -1, -1, -1), weights, *options)
    with pytest.raises(RuntimeError, match=r"^attention_weights: expected \[1, 3, 1, 2\]"):
        schema.SAMPLE.forward(value, shapes, locations, weights[:, :2], *options)
    with pytest.raises(RuntimeError, match=r"^grad_output: expected \[1, 3, 2\]"):
        schema.SAMPLE.backward(torch.ones(1, 2, 2), value, shapes, locations, weights, *options, [True] * 3)
    fused = value, shapes, torch.rand(1, 3, 2, 2), locations, weights, None, 0.5
    with pytest.raises(RuntimeError, match=r"^reference_points: expected \[1, 3, 1, 2\]"):
        schema.ATTEND.forward(*fused, *options)


EMPTY = [(0, 2**31 - 1), (2**31 - 1, 0), (0, 10**6), (10**6, 0)]


@pytest.mark.parametrize("empty", EMPTY, ids=str)
@pytest.mark.parametrize("queries", [64, 500])
@pytest.mark.parametrize("counts", [[2, 0], [2, 3]])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_the_other_side_of_an_empty_level_may_be_anything(empty, queries, counts, padding_mode):
    results = []
    for pair in (empty, (0, 1)):
        value, shapes, _, _ = arguments([(2, 2), pair], counts)
        generator = torch.Generator().manual_seed(3)
        locations = torch.rand(1, queries, 1, sum(counts), 2, generator=generator) * 1.4 - 0.2
        weights = torch.rand(1, queries, 1, sum(counts), generator=generator)
        call = value, shapes, locations, weights, counts, "bilinear", padding_mode
        grad_output = torch.rand(1, queries, 2, generator=generator)
        results.append([schema.SAMPLE.forward(*call), *schema.SAMPLE.backward(grad_output, *call, [True] * 3)])
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)
        assert actual.isfinite().all()


# Sides above 2^24, where float32 does not hold every pixel's number.

LONG = 2**24


# In float32 the first of these sides is rounded down, the second up, and the third is exact.
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("side", [LONG + 1, LONG + 3, 20_000_000])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_with_border_the_last_pixel_of_a_side_above_2_24_is_read(backend, side, interpolation):
    value = torch.zeros(1, side, 1, 1)
    value[0, -1] = 7
    value.requires_grad_()
    options = {"interpolation": interpolation, "padding_mode": "border", "backend": backend}
    for shape, location in (((1, side), (1.0, 0.5)), ((side, 1), (0.5, math.inf))):
        location = torch.tensor(location).view(1, 1, 1, 1, 1, 2)
        output = multi_scale_deformable_attention(value, [shape], location, torch.ones(1, 1, 1, 1, 1), **options)
        (grad,) = torch.autograd.grad(output.sum(), value)
        assert output.item() == 7
        assert grad[0, -1].item() == 1
        assert grad.sum().item() == 1


@pytest.mark.parametrize(
    ("side", "interpolation", "padding_mode"),
    [(LONG + 3, interpolation, mode) for interpolation in ("bilinear", "nearest") for mode in ("zeros", "border")]
    + [(LONG + 1, "bilinear", "zeros"), (LONG + 1, "nearest", "border")]
    + [(LONG + 4, "bilinear", "border"), (LONG + 4, "nearest", "zeros")],
)
def test_native_and_reference_read_the_same_pixels_along_a_side_above_2_24(side, interpolation, padding_mode):
    value = (torch.arange(side, dtype=torch.float32) % 97).view(1, side, 1, 1)
    x = torch.tensor([1.0, 0.0, 0.99999994, 5.9604645e-8, 0.5, 1.0000001, -1e-7, 1e30, -1e30, math.inf, -math.inf])
    locations = torch.stack((x, torch.full_like(x, 0.5)), -1).view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(locations.shape[:-1])
    results = []
    for backend in ("native", "reference"):
        inputs = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
        options = {"interpolation": interpolation, "padding_mode": padding_mode, "backend": backend}
        output = multi_scale_deformable_attention(inputs[0], [(1, side)], *inputs[1:], **options)
        results.append([output, *torch.autograd.grad(output.sum(), inputs)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
