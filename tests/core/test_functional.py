"""Tests of both entry points against the oracle: outputs and every gradient, over all cases, dtypes and backends."""

import functools

import pytest
import torch

from cases import (
    CASES,
    CLASSIC_NAMES,
    DERIVATIVES,
    FUSED_NAMES,
    SMALL_CASES,
    TINY_CASES,
    Case,
    case_id,
    expected_classic,
    expected_classic_gradients,
    expected_fused,
    expected_fused_gradients,
    grad_output_of,
    inputs_of,
    named,
)
from deform_attn import deformable_attention, multi_scale_deformable_attention
from oracle import seed_attention
from tolerances import assert_close

ALL = pytest.mark.parametrize("case", CASES + SMALL_CASES, ids=case_id)
FORMS = pytest.mark.parametrize("form", ["fused", "classic"])
MODES = [(i, p) for i in ("bilinear", "nearest") for p in ("zeros", "border")]
# One case of each kind: its points counted per level, boxes, masks, one-pixel and empty levels, odd channels.
REPRESENTATIVE = [
    named(name)
    for name in ("encoder", "boxes with points per level", "one-pixel level", "empty levels", "many channels")
]
# Every case takes each mode, two of them in float32, which most calls have, and two in float64; a representative one
# takes each mode in both. 16 bits differ in how numbers are read and written alone.
OUTPUTS = [(case, torch.float32, *modes) for case in CASES + SMALL_CASES for modes in (MODES[0], MODES[3])]
OUTPUTS += [(case, torch.float64, *modes) for case in CASES + SMALL_CASES for modes in MODES[1:3]]
OUTPUTS += [(case, torch.float32, *modes) for case in REPRESENTATIVE for modes in MODES[1:3]]
OUTPUTS += [(case, torch.float64, *modes) for case in REPRESENTATIVE for modes in (MODES[0], MODES[3])]
OUTPUTS += [
    (case, dtype, *modes)
    for case in REPRESENTATIVE
    for dtype in (torch.bfloat16, torch.float16)
    for modes in (MODES[0], MODES[3])
]
GRADIENTS = [(case, torch.float64, *modes) for case in CASES + SMALL_CASES for modes in MODES[1:3]]
GRADIENTS += [(case, torch.float64, *MODES[0]) for case in REPRESENTATIVE]
GRADIENTS += [(case, torch.float32, *MODES[0]) for case in CASES + SMALL_CASES]
GRADIENTS += [(case, torch.bfloat16, *MODES[0]) for case in REPRESENTATIVE]
GRADIENTS += [(case, torch.float16, *MODES[1]) for case in REPRESENTATIVE]


def call_id(part):
    return case_id(part) if isinstance(part, Case) else str(part)


def prepare(form, case, dtype, **modes):
    """Return the entry point with its options bound, and fresh tensors that require gradients."""
    inputs = inputs_of(case, dtype)
    if form == "fused":
        entry_point, tensors, options = deformable_attention, inputs.fused_tensors, inputs.fused_options
    else:
        entry_point, tensors, options = multi_scale_deformable_attention, inputs.classic_tensors, inputs.classic_options
    options = {**options, **modes}

    def call(run, value, *others):
        return run(entry_point, value, inputs.spatial_shapes, *others, **options)

    return call, [tensor.clone().requires_grad_() for tensor in tensors]


@FORMS
@pytest.mark.parametrize(("case", "dtype", "interpolation", "padding_mode"), OUTPUTS, ids=call_id)
def test_the_output_is_that_of_the_oracle(run, form, case, dtype, interpolation, padding_mode):
    call, tensors = prepare(form, case, dtype, interpolation=interpolation, padding_mode=padding_mode)
    expect = expected_fused if form == "fused" else expected_classic
    assert_close(call(run, *tensors), expect(case, dtype, interpolation, padding_mode), dtype)


@FORMS
@pytest.mark.parametrize(("case", "dtype", "interpolation", "padding_mode"), GRADIENTS, ids=call_id)
def test_every_gradient_is_that_of_the_oracle(run, form, case, dtype, interpolation, padding_mode):
    call, tensors = prepare(form, case, dtype, interpolation=interpolation, padding_mode=padding_mode)
    output = call(run, *tensors)
    gradients = torch.autograd.grad(output, tensors, grad_output_of(case, dtype))
    expect = expected_fused_gradients if form == "fused" else expected_classic_gradients
    expected_gradients = expect(case, dtype, interpolation, padding_mode)
    names = FUSED_NAMES if form == "fused" else CLASSIC_NAMES
    for name, gradient, expected in zip(names, gradients, expected_gradients, strict=True):
        try:
            assert_close(gradient, expected, dtype)
        except AssertionError as error:
            raise AssertionError(f"grad_{name}: {error}") from None


@FORMS
@pytest.mark.parametrize(("case", "interpolation", "padding_mode"), DERIVATIVES)
def test_gradcheck_passes_for_every_input(run, form, case, interpolation, padding_mode):
    call, tensors = prepare(form, named(case), torch.float64, interpolation=interpolation, padding_mode=padding_mode)
    assert torch.autograd.gradcheck(functools.partial(call, run), tensors)


@pytest.mark.parametrize("case", TINY_CASES, ids=case_id)
@FORMS
@pytest.mark.parametrize(("interpolation", "padding_mode"), MODES[:3])
def test_gradgradcheck_passes_for_the_reference(form, case, interpolation, padding_mode):
    def run_reference(entry_point, *tensors, **options):
        return entry_point(*tensors, backend="reference", **options)

    call, tensors = prepare(form, case, torch.float64, interpolation=interpolation, padding_mode=padding_mode)
    assert torch.autograd.gradgradcheck(functools.partial(call, run_reference), tensors)


@ALL
@FORMS
def test_without_a_backend_the_output_is_that_of_the_oracle(form, case):
    call, tensors = prepare(form, case, torch.float32)
    expect = expected_fused if form == "fused" else expected_classic
    output = call(lambda entry_point, *args, **options: entry_point(*args, **options), *tensors)
    assert_close(output, expect(case, torch.float32), torch.float32)


@FORMS
def test_each_gradient_can_be_asked_for_alone(run, form):
    case = named("encoder")
    call, tensors = prepare(form, case, torch.float64)
    expected_gradients = torch.autograd.grad(call(run, *tensors), tensors, grad_output_of(case, torch.float64))
    for index, expected in enumerate(expected_gradients):
        alone = [tensor.detach().requires_grad_(i == index) for i, tensor in enumerate(tensors)]
        (gradient,) = torch.autograd.grad(call(run, *alone), [alone[index]], grad_output_of(case, torch.float64))
        assert_close(gradient, expected, torch.float64)


@FORMS
def test_an_output_of_inputs_that_need_no_gradient_needs_none(run, form):
    call, tensors = prepare(form, named("encoder"), torch.float32)
    assert call(run, *tensors).requires_grad
    assert not call(run, *[tensor.detach() for tensor in tensors]).requires_grad
    with torch.no_grad():
        assert not call(run, *tensors).requires_grad


@pytest.mark.parametrize("coordinates", [2, 4])
def test_one_reference_level_stands_for_all_and_its_axis_may_be_left_out(run, coordinates):
    case = named("decoder points" if coordinates == 2 else "boxes on one reference level")
    inputs = inputs_of(case, torch.float64)
    levels = len(case.spatial_shapes)
    outputs = [
        run(deformable_attention, inputs.value, inputs.spatial_shapes, reference_points, *inputs.fused_tensors[2:])
        for reference_points in (
            inputs.reference_points,
            inputs.reference_points.squeeze(2),
            inputs.reference_points.expand(-1, -1, levels, -1),
            inputs.reference_points.repeat(1, 1, levels, 1),
        )
    ]
    for output in outputs:
        assert_close(output, expected_fused(case, torch.float64), torch.float64)


def test_a_flat_input_is_the_same_as_one_with_a_level_and_a_point_axis(run):
    case = named("decoder points")
    inputs = inputs_of(case, torch.float64)
    value, reference_points, offsets, logits = inputs.fused_tensors
    shapes, locations, weights = inputs.spatial_shapes, inputs.sampling_locations, inputs.attention_weights
    for num_points in (3, [3, 3], (3, 3)):
        for last in (offsets, offsets.flatten(3, 4)):
            output = run(deformable_attention, value, shapes, reference_points, last, logits, num_points=num_points)
            assert_close(output, expected_fused(case, torch.float64), torch.float64)
        for pair in ((locations, weights), (locations.flatten(3, 4), weights.flatten(3, 4))):
            output = run(multi_scale_deformable_attention, value, shapes, *pair, num_points=num_points)
            assert_close(output, expected_classic(case, torch.float64), torch.float64)


@pytest.mark.parametrize(
    "form_of_shapes",
    [
        lambda shapes: tuple(shapes),
        lambda shapes: [list(pair) for pair in shapes],
        lambda shapes: torch.tensor(shapes),
        lambda shapes: torch.tensor(shapes, dtype=torch.int32),
        lambda shapes: [torch.Size(pair) for pair in shapes],
    ],
    ids=["tuple of tuples", "list of lists", "int64 tensor", "int32 tensor", "list of sizes"],
)
def test_spatial_shapes_may_be_pairs_or_in_eager_mode_an_integer_tensor(run, form_of_shapes):
    case = named("decoder points")
    inputs = inputs_of(case, torch.float64)
    shapes = form_of_shapes(inputs.spatial_shapes)
    output = run(deformable_attention, inputs.value, shapes, *inputs.fused_tensors[1:])
    assert_close(output, expected_fused(case, torch.float64), torch.float64)
    output = run(multi_scale_deformable_attention, inputs.value, shapes, *inputs.classic_tensors[1:])
    assert_close(output, expected_classic(case, torch.float64), torch.float64)


def test_every_argument_may_be_given_by_its_name(backend):
    case = named("decoder points")
    inputs = inputs_of(case, torch.float64)
    output = deformable_attention(
        value=inputs.value,
        spatial_shapes=inputs.spatial_shapes,
        reference_points=inputs.reference_points,
        sampling_offsets=inputs.sampling_offsets,
        attention_logits=inputs.attention_logits,
        num_points=None,
        padding_mask=None,
        offset_scale=0.5,
        interpolation="bilinear",
        padding_mode="zeros",
        backend=backend,
    )
    assert_close(output, expected_fused(case, torch.float64), torch.float64)
    output = multi_scale_deformable_attention(
        value=inputs.value,
        spatial_shapes=inputs.spatial_shapes,
        sampling_locations=inputs.sampling_locations,
        attention_weights=inputs.attention_weights,
        num_points=None,
        interpolation="bilinear",
        padding_mode="zeros",
        backend=backend,
    )
    assert_close(output, expected_classic(case, torch.float64), torch.float64)


def test_the_scale_of_offsets_is_one_half_unless_told(run):
    case = named("decoder boxes")
    inputs = inputs_of(case, torch.float64)
    output = run(
        deformable_attention,
        inputs.value,
        inputs.spatial_shapes,
        *inputs.fused_tensors[1:],
        padding_mask=inputs.padding_mask,
    )
    assert_close(output, expected_fused(case, torch.float64), torch.float64)


def test_the_scale_of_offsets_does_not_touch_references_that_are_points(run):
    case = named("decoder points")
    inputs = inputs_of(case, torch.float64)
    output = run(deformable_attention, inputs.value, inputs.spatial_shapes, *inputs.fused_tensors[1:], offset_scale=3.0)
    assert_close(output, expected_fused(case, torch.float64), torch.float64)


def test_the_softmax_holds_for_logits_beyond_the_range_of_exp(run):
    case = named("decoder points")
    inputs = inputs_of(case, torch.float32)
    value, reference_points, offsets, logits = inputs.fused_tensors
    expected = run(deformable_attention, value, inputs.spatial_shapes, reference_points, offsets, logits.double())
    shifted = logits.double() + 3e4
    output = run(deformable_attention, value, inputs.spatial_shapes, reference_points, offsets, shifted)
    assert_close(output, expected, torch.float32)


def test_a_logit_of_minus_infinity_switches_its_point_off(run):
    case = named("decoder points")
    inputs = inputs_of(case, torch.float64)
    value, reference_points, offsets, logits = [tensor.clone() for tensor in inputs.fused_tensors]
    logits[..., 3:] = -torch.inf  # the three points of the second level
    output = run(deformable_attention, value, inputs.spatial_shapes, reference_points, offsets, logits)
    first = case.spatial_shapes[0][0] * case.spatial_shapes[0][1]
    expected = run(
        deformable_attention,
        value[:, :first],
        inputs.spatial_shapes[:1],
        reference_points,
        offsets[:, :, :, :1],
        logits[..., :3],
    )
    assert_close(output, expected, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_with_its_projections_the_op_is_the_equation_of_the_paper(run, dtype):
    # C = 6, C_v = 2, M = 3, K = 4; one projection of 3MK channels: first the offsets, then the logits.
    generator = torch.Generator().manual_seed(0)
    c, c_v, m, k, height, width, queries = 6, 2, 3, 4, 5, 7, 8

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    z, x, projection, bias = draw(queries, c), draw(c, height, width), draw(3 * m * k, c), draw(3 * m * k)
    w, w_prime = draw(m, c, c_v), draw(m, c_v, c)
    p = torch.rand(queries, 2, dtype=torch.float64, generator=generator).to(dtype)
    expected = [
        seed_attention(*[tensor.tolist() for tensor in (z[q], p[q], x, projection, bias, w, w_prime)])
        for q in range(queries)
    ]

    value = torch.einsum("mvc,chw->hwmv", w_prime, x).reshape(1, height * width, m, c_v)
    projected = torch.nn.functional.linear(z, projection, bias)
    offsets = projected[:, : 2 * m * k].reshape(1, queries, m, 1, k, 2)
    logits = projected[:, 2 * m * k :].reshape(1, queries, m, k)
    heads = run(deformable_attention, value, [(height, width)], p.reshape(1, queries, 2), offsets, logits)
    actual = torch.einsum("mcv,qmv->qc", w, heads.reshape(queries, m, c_v))
    assert_close(actual, expected, dtype)
