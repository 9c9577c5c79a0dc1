"""Sizes as an integer tensor, in eager mode: the results of int pairs, judged on every call, and every transform."""

import pytest
import torch
from calls import CLASSIC, FLAT, FUSED, SHAPES, check, refusal, valid
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from cases import CASES, SMALL_CASES, TINY_CASES, case_id, grad_output_of, inputs_of, named
from deform_attn import (
    MultiScaleDeformableAttention,
    deformable_attention,
    explain,
    multi_scale_deformable_attention,
    record,
)
from every_backend import BACKENDS

OPS = torch.ops.deform_attn
ENTRY_POINTS = {FUSED: deformable_attention, CLASSIC: multi_scale_deformable_attention}
FORMS = pytest.mark.parametrize("form", [FUSED, CLASSIC])
MODES = pytest.mark.parametrize("modes", [("bilinear", "zeros"), ("nearest", "border")], ids="-".join)
SIGNED = [torch.int64, torch.int32, torch.int16, torch.int8]
INTEGERS = [*SIGNED, torch.uint64, torch.uint32, torch.uint16, torch.uint8]


def tensors_of(form, case, dtype=torch.float64):
    inputs = inputs_of(case, dtype)
    tensors = inputs.fused_tensors if form == FUSED else inputs.classic_tensors
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def options_of(form, case, dtype=torch.float64):
    inputs = inputs_of(case, dtype)
    return inputs.fused_options if form == FUSED else inputs.classic_options


def results(form, case, sizes, dtype=torch.float64, **more):
    """Return the output and every gradient of an entry point on a case, with these sizes."""
    value, *others = tensors = tensors_of(form, case, dtype)
    output = ENTRY_POINTS[form](value, sizes, *others, **options_of(form, case, dtype), **more)
    return [output.detach(), *torch.autograd.grad(output, tensors, grad_output_of(case, dtype))]


def check_same_bits(actual, expected):
    assert len(actual) == len(expected)
    assert any((tensor != 0).any() for tensor in expected)
    for a, b in zip(actual, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)


def op_of(form, overload, case, dtype=torch.float64, modes=("bilinear", "zeros")):
    """Return an op, its tensors with gradients, and a function that gives all its arguments from sizes and tensors."""
    inputs, num_points = inputs_of(case, dtype), list(case.num_points)
    tensors = tensors_of(form, case, dtype)
    N, Q, M, T = inputs.attention_logits.shape

    def flat(tensor, *shape):
        return tensor.detach().reshape(shape).requires_grad_()

    if form == CLASSIC:
        tensors = [tensors[0], flat(tensors[1], N, Q, M, T, 2), flat(tensors[2], N, Q, M, T)]
        return (
            getattr(OPS.multi_scale_deformable_attention, overload),
            tensors,
            lambda sizes, value, *others: [value, sizes, *others, num_points, *modes],
        )
    references = tensors[1] if tensors[1].ndim == 4 else flat(tensors[1], N, Q, 1, tensors[1].shape[-1])
    tensors = [tensors[0], references, flat(tensors[2], N, Q, M, T, 2), tensors[3]]
    rest = inputs.padding_mask, case.offset_scale, num_points, *modes
    return (
        getattr(OPS.deformable_attention, overload),
        tensors,
        lambda sizes, value, *others: [value, sizes, *others, *rest],
    )


# The same numbers.


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_a_tensor_of_sizes_gives_the_bits_that_pairs_give(form, case, dtype):
    expected = results(form, case, list(case.spatial_shapes), dtype)
    check_same_bits(results(form, case, torch.tensor(case.spatial_shapes), dtype), expected)


@FORMS
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["encoder", "decoder boxes", "points counted per level", "empty levels"])
def test_every_backend_takes_a_tensor_of_sizes_as_it_takes_pairs(form, backend, name):
    case = named(name)
    expected = results(form, case, list(case.spatial_shapes), torch.float32, backend=backend)
    check_same_bits(results(form, case, torch.tensor(case.spatial_shapes), torch.float32, backend=backend), expected)


@FORMS
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_sizes_of_every_integer_dtype_count_pixels_beyond_it(form, dtype):
    sizes = [(13, 20), (3, 5)]  # 260 pixels
    inputs = {**valid(form), "value": torch.randn(2, 275, 3, 5)}
    expected = ENTRY_POINTS[form](**{**inputs, "spatial_shapes": sizes})
    actual = ENTRY_POINTS[form](**{**inputs, "spatial_shapes": torch.tensor(sizes, dtype=dtype)})
    assert torch.equal(actual, expected)


@FORMS
@pytest.mark.parametrize(
    "layout",
    [
        lambda sizes: sizes.T.clone().T,
        lambda sizes: torch.stack([sizes, sizes + 1], -1)[..., 0],
        lambda sizes: sizes.flip(0).flip(0),
        lambda sizes: torch.cat([sizes + 1, sizes])[len(sizes) :],
        lambda sizes: sizes[:, :1].expand(-1, 2).clone().copy_(sizes),
        lambda sizes: torch.nn.Parameter(sizes, requires_grad=False),
    ],
    ids=["transposed", "strided", "flipped", "a view at an offset", "copied", "a parameter"],
)
def test_sizes_are_read_through_any_strides(form, layout):
    case = named("points counted per level")
    expected = results(form, case, list(case.spatial_shapes))
    check_same_bits(results(form, case, layout(torch.tensor(case.spatial_shapes))), expected)


def test_expanded_sizes_of_square_maps_are_read():
    sizes = torch.tensor([[4], [3]]).expand(2, 2)
    value, locations, weights = torch.randn(1, 25, 2, 3), torch.rand(1, 5, 2, 2, 2, 2), torch.rand(1, 5, 2, 2, 2)
    expected = multi_scale_deformable_attention(value, [(4, 4), (3, 3)], locations, weights)
    assert torch.equal(multi_scale_deformable_attention(value, sizes, locations, weights), expected)


@FORMS
def test_inference_mode_takes_a_tensor_of_sizes(form):
    case = named("decoder points")
    expected = results(form, case, list(case.spatial_shapes))[0]
    with torch.inference_mode():
        value, *others = tensors_of(form, case)
        output = ENTRY_POINTS[form](value, torch.tensor(case.spatial_shapes), *others)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_the_module_takes_a_tensor_of_sizes_beside_flat_features(coordinates, masked):
    module, (query, references, features), mask = module_and_arguments(coordinates)
    options = {"padding_mask": mask if masked else None}

    def outcome(sizes):
        leaves = [query.clone().requires_grad_(), features.clone().requires_grad_()]
        output, sampling = module(leaves[0], references, leaves[1], sizes, **options, return_sampling=True)
        gradients = torch.autograd.grad(output.sin().sum(), [*leaves, *module.parameters()])
        return [output.detach(), sampling.locations.detach(), sampling.weights.detach(), *gradients]

    expected = outcome(SHAPES)
    for dtype in (torch.int64, torch.int32):
        check_same_bits(outcome(torch.tensor(SHAPES, dtype=dtype)), expected)


def module_and_arguments(coordinates=2):
    generator = torch.Generator().manual_seed(3)
    module = MultiScaleDeformableAttention(6, num_heads=2, num_levels=2, num_points=[3, 2])
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    query, features = torch.randn(2, 5, 6, generator=generator), torch.randn(2, 10, 6, generator=generator)
    references = torch.rand(2, 5, 2, coordinates, generator=generator)
    return module, (query, references, features), torch.rand(2, 10, generator=generator) < 0.3


# Judged on every call.


@FORMS
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_sizes_changed_in_place_between_calls_count_from_the_next_call(form, backend):
    call = {**valid(form), "value": torch.randn(2, 10, 3, 5), "backend": backend}
    points = "sampling_offsets" if form == FUSED else "sampling_locations"
    call[points] = torch.rand_like(call[points])
    entry_point, sizes = ENTRY_POINTS[form], torch.tensor(SHAPES)
    call["spatial_shapes"] = sizes
    seen = []
    for numbers in (SHAPES, [(3, 2), (1, 4)], [(1, 8), (2, 1)], SHAPES, [(5, 2), (0, 9)]):
        sizes.copy_(torch.tensor(numbers))
        seen.append(entry_point(**call))
        assert torch.equal(seen[-1], entry_point(**{**call, "spatial_shapes": numbers}))
    assert not torch.equal(seen[0], seen[1])
    for numbers in ([(2, 3), (4, 2)], [(2, 3), (3, 1)], [(-2, -3), (4, 1)], [(2, 3), (2**31, 0)]):
        sizes.copy_(torch.tensor(numbers))
        assert refusal(form, **call) == refusal(form, **{**call, "spatial_shapes": numbers})
        sizes.copy_(torch.tensor(SHAPES))
        assert torch.equal(entry_point(**call), seen[0])


@FORMS
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_sizes_changed_after_the_call_change_no_gradient_of_it(form, backend):
    case = named("small points")
    expected = results(form, case, list(case.spatial_shapes), backend=backend)
    sizes = torch.tensor(case.spatial_shapes)
    value, *others = tensors = tensors_of(form, case)
    output = ENTRY_POINTS[form](value, sizes, *others, **options_of(form, case), backend=backend)
    sizes.fill_(2**40)
    gradients = torch.autograd.grad(output, tensors, grad_output_of(case, torch.float64))
    check_same_bits([output.detach(), *gradients], expected)


WRONG_NUMBERS = {
    "too many pixels": [(2, 3), (4, 2)],
    "too few pixels": [(2, 3), (3, 1)],
    "no pixels": [(0, 0), (0, 0)],
    "a negative side": [(2, 3), (-4, 1)],
    "negative sides whose product fits": [(-2, -3), (4, 1)],
    "a negative level that another makes up for": [(2, 7), (-4, 1)],
    "a side of 2^31": [(5, 2), (0, 2**31)],
    "sides that fit in 32 bits only": [(2**32 + 2, 3), (4, 1)],
    "pixels that fit in 64 bits only": [(2**32, 2**32), (5, 2)],
    "the smallest int64": [(5, 2), (-(2**63), 0)],
    "the largest int64": [(5, 2), (2**63 - 1, 0)],
}


@FORMS
@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("sizes", WRONG_NUMBERS.values(), ids=[name.replace(" ", "-") for name in WRONG_NUMBERS])
def test_wrong_numbers_raise_the_error_of_a_list_of_pairs_on_every_call(form, sizes, backend):
    expected = refusal(form, spatial_shapes=sizes, backend=backend)
    check(expected, ["spatial_shapes"])
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            ENTRY_POINTS[form](**{**valid(form), "spatial_shapes": torch.tensor(sizes)}, backend=backend)
        assert type(caught.value) is ValueError
        assert str(caught.value) == expected


@pytest.mark.parametrize("sizes", WRONG_NUMBERS.values(), ids=[name.replace(" ", "-") for name in WRONG_NUMBERS])
def test_wrong_numbers_raise_the_error_of_a_list_of_pairs_in_the_module(sizes):
    module, arguments, _ = module_and_arguments()
    with pytest.raises(ValueError) as expected:
        module(*arguments, sizes)
    with pytest.raises(ValueError) as actual:
        module(*arguments, torch.tensor(sizes))
    assert str(actual.value) == str(expected.value)
    check(str(actual.value), ["spatial_shapes"])


@FORMS
@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        (torch.tensor(SHAPES).float(), "float32"),
        (torch.tensor(SHAPES).double(), "float64"),
        (torch.tensor(SHAPES) + 0j, "complex64"),
        (torch.tensor(SHAPES) > 0, "bool"),
        (torch.tensor(10), "[]"),
        (torch.tensor([2, 3]), "[2]"),
        (torch.tensor([2, 3, 4, 1]), "[4]"),
        (torch.tensor(SHAPES)[..., None], "[2, 2, 1]"),
        (torch.tensor(SHAPES)[None], "[1, 2, 2]"),
        (torch.tensor([(2, 3, 1), (4, 1, 1)]), "[2, 3]"),
        (torch.tensor([[10], [0]]), "[2, 1]"),
        (torch.tensor([(2, 3), (4, 1)]).flatten()[None], "[1, 4]"),
        (torch.zeros(2, 0, dtype=torch.int64), "[2, 0]"),
    ],
    ids=lambda wrong: f"{wrong.dtype}{list(wrong.shape)}" if isinstance(wrong, torch.Tensor) else None,
)
def test_a_tensor_that_holds_no_pairs_of_ints_is_refused_with_its_dtype_and_its_shape(form, wrong, shown):
    for more in ({}, {**FLAT[form], "num_points": 4}):
        message = refusal(form, spatial_shapes=wrong, **more)
        assert message.startswith("spatial_shapes: expected ")
        check(message, ["spatial_shapes"], shown)


@FORMS
@pytest.mark.parametrize("more", [{}, {**FLAT[FUSED], "num_points": []}], ids=["by level", "flat"])
def test_no_levels_at_all_are_refused(form, more):
    more = {**FLAT[form], "num_points": []} if more else {}
    message = refusal(form, spatial_shapes=torch.zeros(0, 2, dtype=torch.int64), **more)
    check(message, ["spatial_shapes", "num_points"])
    assert message == refusal(form, spatial_shapes=[], **more)


@FORMS
@pytest.mark.parametrize("sizes", [[(5, 2)], [(2, 3), (4, 1), (0, 5)]], ids=["one", "three"])
@pytest.mark.parametrize("flat", [False, True])
def test_another_number_of_levels_than_the_points_have_is_refused_as_of_a_list(form, sizes, flat):
    more = {**FLAT[form], "num_points": [4, 4]} if flat else {}
    message = refusal(form, spatial_shapes=torch.tensor(sizes), **more)
    check(message, ["spatial_shapes", "num_points"])
    assert message == refusal(form, spatial_shapes=sizes, **more)


@FORMS
def test_flat_points_beside_a_tensor_of_sizes_need_num_points(form):
    message = refusal(form, **FLAT[form], spatial_shapes=torch.tensor(SHAPES))
    check(message, ["num_points"])
    assert message == refusal(form, **FLAT[form], spatial_shapes=SHAPES)


@FORMS
def test_a_list_of_tensors_without_axes_is_refused_by_type(form):
    for wrong in ([torch.tensor(2), torch.tensor(3)], [(torch.tensor(2), torch.tensor(3)), (4, 1)]):
        with pytest.raises(TypeError, match="spatial_shapes"):
            ENTRY_POINTS[form](**{**valid(form), "spatial_shapes": wrong})


@FORMS
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_sizes_on_another_device_than_the_cpu_and_value_are_refused_with_the_device(form, backend):
    message = refusal(form, spatial_shapes=torch.tensor(SHAPES, device="meta"), backend=backend)
    check(message, ["spatial_shapes"], "meta", "cpu")


def test_the_module_refuses_sizes_on_another_device_with_the_device():
    module, arguments, _ = module_and_arguments()
    with pytest.raises(ValueError, match=r"^spatial_shapes: expected .*meta"):
        module(*arguments, torch.tensor(SHAPES, device="meta"))


@FORMS
def test_everything_on_meta_gives_a_meta_output_and_gradients(form):
    call = {name: torch.as_tensor(argument).to("meta") for name, argument in valid(form).items()}
    leaves = [tensor.requires_grad_() for tensor in call.values() if tensor.is_floating_point()]
    output = ENTRY_POINTS[form](**call)
    assert (output.device.type, output.shape) == ("meta", (2, 7, 15))
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert [(g.device.type, g.shape) for g in gradients] == [("meta", leaf.shape) for leaf in leaves]
    assert explain(*call.values()).backend == "reference"


@FORMS
def test_sizes_on_the_cpu_beside_a_value_on_meta_are_judged(form):
    call = {name: torch.as_tensor(argument).to("meta") for name, argument in valid(form).items()}
    assert ENTRY_POINTS[form](**{**call, "spatial_shapes": torch.tensor(SHAPES)}).shape == (2, 7, 15)
    with pytest.raises(ValueError, match="spatial_shapes"):
        ENTRY_POINTS[form](**{**call, "spatial_shapes": torch.tensor([(2, 3), (4, 2)])})


def test_the_module_on_meta_gives_a_meta_output():
    module, (query, references, features), mask = module_and_arguments()
    arguments = [tensor.to("meta") for tensor in (query, references, features, torch.tensor(SHAPES))]
    output = module.to("meta")(*arguments, padding_mask=mask.to("meta"))
    assert (output.device.type, output.shape) == ("meta", (2, 5, 6))


# What torch does with the ops.


@FORMS
def test_sizes_changed_between_the_passes_of_the_op_give_no_wrong_gradient(form):
    case = named("small points")
    op, tensors, arguments = op_of(form, "Tensor", case)
    sizes = torch.tensor(case.spatial_shapes)
    output = op(*arguments(sizes, *tensors))
    sizes.copy_(sizes.flip(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@FORMS
@MODES
@pytest.mark.parametrize("case", SMALL_CASES, ids=case_id)
def test_the_op_that_takes_a_tensor_is_the_op_that_takes_ints(form, case, modes):
    outcomes = []
    for overload in ("default", "Tensor"):
        op, tensors, arguments = op_of(form, overload, case, modes=modes)
        sizes = torch.tensor(case.spatial_shapes)
        output = op(*arguments(sizes.flatten().tolist() if overload == "default" else sizes, *tensors))
        gradients = torch.autograd.grad(output, tensors, grad_output_of(case, torch.float64), allow_unused=True)
        outcomes.append([output, *[g if g is not None else torch.zeros(1) for g in gradients]])
    check_same_bits(*outcomes[::-1])


@FORMS
@pytest.mark.parametrize("wanted", ["all", "first", "last", "none"])
def test_the_backward_op_that_takes_a_tensor_is_the_one_that_takes_ints(form, wanted):
    case = named("small boxes")
    sizes, outcomes = torch.tensor(case.spatial_shapes), []
    for overload in ("default", "Tensor"):
        op, tensors, arguments = op_of(form, overload, case)
        wants = [
            wanted == "all" or (wanted, i) in (("first", 0), ("last", len(tensors) - 1)) for i in range(len(tensors))
        ]
        backward = getattr(getattr(OPS, f"{op._opname}_backward"), overload)
        given = arguments(sizes.flatten().tolist() if overload == "default" else sizes, *[t.detach() for t in tensors])
        outcomes.append(backward(grad_output_of(case, torch.float64), *given, wants))
    for a, b, want in zip(*outcomes, wants, strict=True):
        assert torch.equal(a, b)
        assert (a != 0).any() == want


@FORMS
@pytest.mark.parametrize("sizes", WRONG_NUMBERS.values(), ids=[name.replace(" ", "-") for name in WRONG_NUMBERS])
def test_the_op_called_by_its_name_refuses_wrong_numbers(form, sizes):
    call = valid(form)
    value, points = call["value"], [call[name] for name in list(call)[2:]]
    points[form == FUSED] = points[form == FUSED].flatten(3, 4)
    if form == CLASSIC:
        rest = points[0], points[1].flatten(3), [4, 4], "bilinear", "zeros"
        op = OPS.multi_scale_deformable_attention.Tensor
    else:
        rest = *points, None, 0.5, [4, 4], "bilinear", "zeros"
        op = OPS.deformable_attention.Tensor
    assert op(value, torch.tensor(SHAPES), *rest).shape == (2, 7, 15)
    with pytest.raises((ValueError, RuntimeError), match=r"spatial_shapes: expected "):
        op(value, torch.tensor(sizes), *rest)


@FORMS
@pytest.mark.parametrize(
    ("case", "padding_mode"), [(TINY_CASES[0], "border"), (TINY_CASES[1], "zeros")], ids=["points", "boxes"]
)
def test_gradients_forward_mode_and_second_derivatives_are_those_of_finite_differences(form, case, padding_mode):
    op, tensors, arguments = op_of(form, "Tensor", case, modes=("bilinear", padding_mode))
    sizes = torch.tensor(case.spatial_shapes)

    def function(*tensors):
        return op(*arguments(sizes, *tensors))

    assert gradcheck(function, tensors, check_forward_ad=True)
    assert gradgradcheck(function, tensors)


@FORMS
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # read by the check itself
def test_opcheck_passes_for_the_op_that_takes_a_tensor(form):
    case = named("small boxes")
    op, tensors, arguments = op_of(form, "Tensor", case, torch.float32)
    result = torch.library.opcheck(op, arguments(torch.tensor(case.spatial_shapes), *tensors))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("form", [FUSED, pytest.param(CLASSIC, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # read by the check itself
def test_opcheck_passes_for_the_backward_op_that_takes_a_tensor(form):
    case = named("small points")
    op, tensors, arguments = op_of(form, "Tensor", case)
    backward = getattr(OPS, f"{op._opname}_backward").Tensor
    grad_output = grad_output_of(case, torch.float64).requires_grad_()
    given = arguments(torch.tensor(case.spatial_shapes, dtype=torch.int32), *tensors)
    wants = [True] * len(tensors)
    assert set(torch.library.opcheck(backward, [grad_output, *given, wants]).values()) == {"SUCCESS"}
    wants = [i % 2 == 0 for i in range(len(tensors))]
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    result = torch.library.opcheck(backward, [grad_output, *given, wants], test_utils=checks)
    assert set(result.values()) == {"SUCCESS"}


@FORMS
def test_transforms_of_torch_func_take_a_tensor_of_sizes(form):
    case = named("small points")
    tensors = [tensor.detach() for tensor in tensors_of(form, case)]
    tangents = [tensor.cos() for tensor in tensors]
    argnums = tuple(range(len(tensors)))

    def outcomes(sizes):
        def function(value, *others):
            return ENTRY_POINTS[form](value, sizes, *others, **options_of(form, case))

        def number(*tensors):
            return function(*tensors).sin().sum()

        def dual():
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(x, tangent) for x, tangent in zip(tensors, tangents, strict=True)]
                return forward_ad.unpack_dual(function(*duals)).tangent.clone()

        return [
            *torch.func.grad(number, argnums)(*tensors),
            *torch.func.jvp(function, tuple(tensors), tuple(tangents)),
            *torch.func.vjp(function, *tensors)[1](grad_output_of(case, torch.float64)),
            *torch.func.jacfwd(torch.func.grad(number))(*tensors),
            dual(),
        ]

    expected = outcomes(list(case.spatial_shapes))
    actual = outcomes(torch.tensor(case.spatial_shapes))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all((tensor != 0).any() for tensor in expected)


@FORMS
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_checkpointing_and_inference_sizes_give_the_gradients_of_pairs(form, dtype):
    case = named("small boxes")
    with torch.inference_mode():
        sizes = torch.tensor(case.spatial_shapes, dtype=dtype)
    value, *others = tensors = tensors_of(form, case)
    output = checkpoint(
        ENTRY_POINTS[form], value, sizes.clone(), *others, **options_of(form, case), use_reentrant=False
    )
    gradients = torch.autograd.grad(output, tensors, grad_output_of(case, torch.float64))
    expected = results(form, case, list(case.spatial_shapes))
    check_same_bits([output.detach(), *gradients], expected)
    check_same_bits(results(form, case, sizes), expected)


@FORMS
@pytest.mark.parametrize("closed_over", [False, True], ids=["an argument", "closed over"])
def test_vmap_over_the_tensors_takes_shared_sizes(form, closed_over):
    case = named("small boxes")
    tensors = [tensor.detach() for tensor in tensors_of(form, case)]
    sizes, options = torch.tensor(case.spatial_shapes), options_of(form, case)

    def function(shared, value, *others):
        return ENTRY_POINTS[form](value, sizes if closed_over else shared, *others, **options)

    def gradient(shared, *tensors):
        return torch.func.grad(lambda value: function(shared, value, *tensors[1:]).sin().sum())(tensors[0])

    for mapped in (range(len(tensors)), [0], [1], [len(tensors) - 1]):
        axes = [0 if i in mapped else None for i in range(len(tensors))]
        rows = [[x * factor if i in mapped else x for i, x in enumerate(tensors)] for factor in (1.0, 0.9, 1.1)]
        batched = [torch.stack([row[i] for row in rows]) if i in mapped else x for i, x in enumerate(tensors)]
        for call in (function, gradient):
            expected = torch.stack([call(list(case.spatial_shapes) if not closed_over else sizes, *r) for r in rows])
            actual = torch.vmap(call, (None, *axes))(sizes, *batched)
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@FORMS
@pytest.mark.parametrize("by_name", [False, True], ids=["the function", "the op"])
@pytest.mark.parametrize("all_mapped", [False, True], ids=["sizes alone", "all"])
def test_vmap_over_the_sizes_is_refused_by_name(form, by_name, all_mapped):
    case = named("small points")
    op, tensors, arguments = op_of(form, "Tensor", case)
    sizes = torch.tensor([case.spatial_shapes, case.spatial_shapes])
    if not by_name:
        tensors = tensors_of(form, case)
    tensors = [tensor.detach() for tensor in tensors]

    def function(sizes, value, *others):
        if by_name:
            return op(*arguments(sizes, value, *others))
        return ENTRY_POINTS[form](value, sizes, *others, **options_of(form, case))

    given = [torch.stack([x, x]) for x in tensors] if all_mapped else tensors
    with pytest.raises(ValueError, match=r"^spatial_shapes: .*vmap.*in_dims None") as caught:
        torch.vmap(function, (0, *[0 if all_mapped else None] * len(given)))(sizes, *given)
    assert type(caught.value) is ValueError


@FORMS
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_autocast_rounds_the_value_and_leaves_the_sizes(form, backend):
    case = named("decoder points")
    value, *others = [tensor.detach() for tensor in tensors_of(form, case, torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = (
            ENTRY_POINTS[form](value, sizes, *others, backend=backend)
            for sizes in (torch.tensor(case.spatial_shapes), list(case.spatial_shapes))
        )
        op, tensors, arguments = op_of(form, "Tensor", case, torch.float32)
        by_name = op(*arguments(torch.tensor(case.spatial_shapes), *tensors))
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    assert by_name.dtype == torch.bfloat16
    if backend in (None, "native"):
        assert torch.equal(by_name, expected)


@FORMS
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_the_flop_counter_counts_as_with_ints(form, interpolation):
    case, counts = named("decoder points"), []
    for sizes in (torch.tensor(case.spatial_shapes), list(case.spatial_shapes)):
        value, *others = tensors_of(form, case, torch.float32)
        with FlopCounterMode(display=False) as forward:
            output = ENTRY_POINTS[form](value, sizes, *others, interpolation=interpolation)
        with FlopCounterMode(display=False) as backward:
            output.sum().backward()
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


@FORMS
def test_fake_tensors_give_shape_and_dtype_of_fake_sizes(form):
    case = named("decoder points")
    tensors = [tensor.detach() for tensor in tensors_of(form, case, torch.bfloat16)]
    with FakeTensorMode() as mode:
        value, *others = [mode.from_tensor(tensor).requires_grad_() for tensor in tensors]
        output = ENTRY_POINTS[form](value, mode.from_tensor(torch.tensor(case.spatial_shapes)), *others)
        gradients = torch.autograd.grad(output.sum(), [value, *others])
    assert type(output).__name__ == "FakeTensor"
    assert (output.shape, output.dtype) == ((2, 11, 15), torch.bfloat16)
    assert [(g.shape, g.dtype) for g in gradients] == [(x.shape, x.dtype) for x in tensors]


@FORMS
def test_a_symbolic_trace_is_right_for_other_sizes_and_refuses_wrong_ones(form):
    def function(value, sizes, *others):
        return ENTRY_POINTS[form](value, sizes, *others)

    def arguments(shapes, queries):
        call = {**valid(form), "value": torch.randn(2, sum(H * W for H, W in shapes), 3, 5)}
        value, _, *others = call.values()
        others = [torch.rand_like(x[:, :1].expand(-1, queries, *x.shape[2:]).contiguous()) for x in others]
        return value, torch.tensor(shapes), *others

    traced = make_fx(function, tracing_mode="symbolic")(*arguments(SHAPES, 7))
    assert sum("deform_attn" in str(node.target) for node in traced.graph.nodes) == 1
    for shapes, queries in ((SHAPES, 7), ([(5, 7), (3, 2)], 4), ([(1, 9), (4, 4)], 11)):
        given = arguments(shapes, queries)
        assert torch.equal(traced(*given), function(*given))
    value, _, *others = arguments(SHAPES, 7)
    with pytest.raises(RuntimeError, match=r"spatial_shapes: expected "):
        traced(value, torch.tensor([(2, 3), (4, 2)]), *others)


@FORMS
@pytest.mark.parametrize("backend", [None, "native", "reference"])  # grid_sample has no transforms
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "vmap of grad"])
def test_sizes_may_be_an_argument_of_a_transformed_function(form, backend, transform):
    case = named("small points")
    value, *others = [tensor.detach() for tensor in tensors_of(form, case)]
    sizes, options = torch.tensor(case.spatial_shapes), {**options_of(form, case), "backend": backend}

    def number(value, sizes):
        return ENTRY_POINTS[form](value, sizes, *others, **options).sin().sum()

    derivative = {
        "grad": torch.func.grad(number),
        "jacrev": torch.func.jacrev(number),
        "jacfwd": torch.func.jacfwd(number),
        "vmap of grad": lambda value, sizes: torch.vmap(torch.func.grad(number), (0, None))(value[None], sizes)[0],
    }[transform]
    expected = torch.func.grad(lambda value: number(value, list(case.spatial_shapes)))(value)
    torch.testing.assert_close(derivative(value, sizes), expected, rtol=1e-12, atol=1e-12)


def test_sizes_may_be_an_argument_of_a_transformed_module():
    module, (query, references, features), _ = module_and_arguments()

    def number(query, sizes):
        return module(query, references, features, sizes).sin().sum()

    expected = torch.func.grad(lambda query: number(query, SHAPES))(query)
    torch.testing.assert_close(torch.func.grad(number)(query, torch.tensor(SHAPES)), expected)


@FORMS
def test_the_op_called_by_its_name_refuses_sizes_on_another_device_than_the_cpu_and_value(form):
    op, tensors, arguments = op_of(form, "Tensor", named("small points"))
    sizes = torch.tensor(named("small points").spatial_shapes, device="meta")
    with pytest.raises((ValueError, RuntimeError), match=r"spatial_shapes.*meta"):
        op(*arguments(sizes, *[tensor.detach() for tensor in tensors]))


@FORMS
@pytest.mark.parametrize("overload", ["Tensor", "default"])
@pytest.mark.parametrize("levels", [1, 3])
def test_the_op_called_by_its_name_refuses_another_number_of_levels_than_num_points_has(form, overload, levels):
    case = named("small points")
    op, tensors, arguments = op_of(form, overload, case)
    sizes = torch.tensor([(14, 1)] if levels == 1 else [*case.spatial_shapes, (0, 5)])
    given = sizes.flatten().tolist() if overload == "default" else sizes
    with pytest.raises((ValueError, RuntimeError), match=r"num_points|spatial_shapes"):
        op(*arguments(given, *[tensor.detach() for tensor in tensors]))


@pytest.mark.parametrize("levels", [1, 3])
def test_the_op_on_meta_refuses_another_number_of_levels_than_num_points_has(levels):
    op, tensors, arguments = op_of(CLASSIC, "Tensor", named("small points"))
    sizes = torch.zeros(levels, 2, dtype=torch.int64, device="meta")
    with pytest.raises((ValueError, RuntimeError), match=r"num_points|spatial_shapes"):
        op(*arguments(sizes, *[tensor.detach().to("meta") for tensor in tensors]))


# What explain and record say.


@FORMS
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_explain_of_a_tensor_of_sizes_is_that_of_pairs_and_judges_them(form, backend):
    value, _, *others = valid(form).values()
    actual, expected = (explain(value, sizes, *others, backend=backend) for sizes in (torch.tensor(SHAPES), SHAPES))
    assert (actual.backend, actual.reasons) == (expected.backend, expected.reasons)
    with pytest.raises(ValueError, match="spatial_shapes"):
        explain(value, torch.tensor([(2, 3), (4, 2)]), *others, backend=backend)


def test_a_module_that_is_given_a_tensor_of_sizes_is_recorded_as_with_pairs():
    module, arguments, mask = module_and_arguments()
    seen = []
    for sizes in (torch.tensor(SHAPES), SHAPES):
        with record(module) as records:
            output = module(*arguments, sizes, padding_mask=mask)
        assert len(records) == 1
        seen.append((output.detach(), records[0]))
    (output, actual), (expected_output, expected) = seen
    check_same_bits([output, actual.locations, actual.weights], [expected_output, expected.locations, expected.weights])
    assert [tuple(map(int, pair)) for pair in actual.spatial_shapes] == SHAPES
    assert actual.num_points == expected.num_points
    sampling, shapes, num_points = module.compute_sampling(*arguments, torch.tensor(SHAPES))
    assert torch.equal(sampling.locations, actual.locations)
    assert ([tuple(map(int, pair)) for pair in shapes], list(num_points)) == (SHAPES, [3, 2])
