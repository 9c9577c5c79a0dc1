"""Errors: each refused input, by type and by message: the argument, what was expected, what came."""

import functools
import math
import re

import pytest
import torch
from calls import CLASSIC, ENTRY_POINTS, FLAT, FUSED, TENSORS, check, refusal, valid

from deform_attn import deformable_attention
from every_backend import BACKENDS


def shape_text(shape):
    return ", ".join(str(size) for size in shape)


@pytest.mark.parametrize("form", [FUSED, CLASSIC])
def test_the_call_that_the_others_differ_from_is_accepted(form):
    assert ENTRY_POINTS[form](**valid(form)).shape == (2, 7, 15)


# form, argument, its wrong shape, other arguments that the message may name instead
WRONG_SHAPES = [
    # rank
    (FUSED, "value", (2, 10, 15), ()),
    (FUSED, "value", (10, 3, 5), ()),
    (FUSED, "value", (2, 10, 3, 5, 1), ()),
    (FUSED, "reference_points", (7, 2), ()),
    (FUSED, "reference_points", (2, 7, 3, 2, 2), ()),
    (FUSED, "sampling_offsets", (2, 7, 3, 16), ()),
    (FUSED, "sampling_offsets", (2, 7, 3, 2, 4, 2, 1), ()),
    (FUSED, "attention_logits", (2, 7, 24), ()),
    (FUSED, "attention_logits", (2, 7, 3, 2, 4), ()),
    (CLASSIC, "value", (2, 10, 15), ()),
    (CLASSIC, "sampling_locations", (2, 7, 3, 16), ()),
    (CLASSIC, "sampling_locations", (2, 7, 3, 2, 4, 2, 1), ()),
    (CLASSIC, "attention_weights", (2, 7, 24), ()),
    (CLASSIC, "attention_weights", (2, 7, 3, 2, 4, 1), ()),
    # S
    (FUSED, "value", (2, 11, 3, 5), ("spatial_shapes",)),
    (CLASSIC, "value", (2, 9, 3, 5), ("spatial_shapes",)),
    # N
    (FUSED, "reference_points", (3, 7, 2, 2), ()),
    (FUSED, "sampling_offsets", (3, 7, 3, 2, 4, 2), ()),
    (FUSED, "attention_logits", (3, 7, 3, 8), ()),
    (FUSED, "reference_points", (1, 7, 2, 2), ()),
    (CLASSIC, "sampling_locations", (3, 7, 3, 2, 4, 2), ()),
    (CLASSIC, "attention_weights", (1, 7, 3, 2, 4), ()),
    # Q
    (FUSED, "reference_points", (2, 6, 2, 2), ("sampling_offsets",)),
    (FUSED, "attention_logits", (2, 6, 3, 8), ("sampling_offsets",)),
    (CLASSIC, "attention_weights", (2, 6, 3, 2, 4), ("sampling_locations",)),
    # M
    (FUSED, "sampling_offsets", (2, 7, 4, 2, 4, 2), ("value",)),
    (FUSED, "attention_logits", (2, 7, 4, 8), ()),
    (FUSED, "attention_logits", (2, 7, 1, 8), ()),
    (CLASSIC, "sampling_locations", (2, 7, 4, 2, 4, 2), ("value",)),
    (CLASSIC, "attention_weights", (2, 7, 4, 2, 4), ()),
    # L
    (FUSED, "sampling_offsets", (2, 7, 3, 3, 4, 2), ("spatial_shapes",)),
    (FUSED, "reference_points", (2, 7, 3, 2), ("spatial_shapes",)),
    (CLASSIC, "sampling_locations", (2, 7, 3, 3, 4, 2), ("spatial_shapes",)),
    (CLASSIC, "attention_weights", (2, 7, 3, 1, 4), ()),
    # P, T
    (FUSED, "attention_logits", (2, 7, 3, 9), ("sampling_offsets",)),
    (FUSED, "sampling_offsets", (2, 7, 3, 2, 5, 2), ("attention_logits",)),
    (CLASSIC, "attention_weights", (2, 7, 3, 2, 5), ("sampling_locations",)),
    (CLASSIC, "attention_weights", (2, 7, 3, 2, 1), ("sampling_locations",)),
    # coordinates
    (FUSED, "sampling_offsets", (2, 7, 3, 2, 4, 3), ()),
    (FUSED, "sampling_offsets", (2, 7, 3, 2, 4, 1), ()),
    (FUSED, "reference_points", (2, 7, 2, 3), ()),
    (FUSED, "reference_points", (2, 7, 2, 5), ()),
    (FUSED, "reference_points", (2, 7, 3), ()),
    (CLASSIC, "sampling_locations", (2, 7, 3, 2, 4, 3), ()),
]


@pytest.mark.parametrize(("form", "argument", "shape", "others"), WRONG_SHAPES, ids=str)
def test_a_wrong_shape_is_refused_with_the_argument_and_what_came(form, argument, shape, others):
    changed = {argument: torch.ones(shape)}
    message = refusal(form, **changed)
    check(message, [argument, *others])
    # What came is shown as the shape of a tensor that is named, or as the one size that is wrong.
    named = {name: tensor for name, tensor in {**valid(form), **changed}.items() if name in message}
    shapes = [shape_text(tensor.shape) for tensor in named.values() if isinstance(tensor, torch.Tensor)]
    right = valid(form)[argument].shape
    sizes = [str(size) for size, other in zip(shape, right, strict=False) if size != other]
    assert any(text in message for text in shapes) or any(re.search(rf"\b{size}\b", message) for size in sizes)


def test_a_flat_attention_weight_with_locations_by_level_is_refused():
    message = refusal(CLASSIC, attention_weights=torch.ones(2, 7, 3, 8))
    check(message, ["attention_weights", "sampling_locations"])


def test_sizes_that_do_not_add_up_show_both_sums():
    message = refusal(FUSED, value=torch.ones(2, 11, 3, 5))
    check(message, ["value", "spatial_shapes"], "11", "10")


def test_a_reference_of_three_coordinates_shows_two_and_four():
    message = refusal(FUSED, reference_points=torch.ones(2, 7, 2, 3))
    check(message, ["reference_points"], "2", "4", "3")


# Counts of points.


@pytest.mark.parametrize("form", [FUSED, CLASSIC])
def test_a_flat_input_without_num_points_is_refused(form):
    check(refusal(form, **FLAT[form]), ["num_points"])


@pytest.mark.parametrize("form", [FUSED, CLASSIC])
@pytest.mark.parametrize(
    ("num_points", "shown"),
    [
        ([4, 3], "7"),  # adds up to 7, not 8
        ([4, 5], "9"),
        (3, "3"),
        (5, "5"),
        ([8], "8"),  # one count for two levels
        ([4, 4, 0], "4, 4, 0"),
        ([9, -1], "-1"),
        (-4, "-4"),
        ([4.0, 4.0], "4.0"),
        (4.0, "4.0"),
        ("4", "4"),
        ([True, 7], "True"),
        ([None, 8], "None"),
        ([], ""),
    ],
    ids=str,
)
def test_counts_that_do_not_fit_a_flat_input_are_refused(form, num_points, shown):
    check(refusal(form, **FLAT[form], num_points=num_points), ["num_points"], shown)


@pytest.mark.parametrize("form", [FUSED, CLASSIC])
@pytest.mark.parametrize("num_points", [3, 5, [4, 3], [3, 5], [4], [4, 4, 4], [-4, 4], "4"], ids=str)
def test_counts_that_contradict_the_point_axis_are_refused(form, num_points):
    check(refusal(form, num_points=num_points), ["num_points"])


# Kinds of arguments.


@pytest.mark.parametrize(("form", "argument"), TENSORS)
@pytest.mark.parametrize("kind", [list, None], ids=str)
def test_what_is_not_a_tensor_is_refused(form, argument, kind):
    other = valid(form)[argument].tolist() if kind is list else None
    check(refusal(form, **{argument: other}), [argument], type(other).__name__)


@pytest.mark.parametrize(("form", "argument"), TENSORS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64], ids=str)
def test_a_dtype_that_is_not_floating_point_is_refused(form, argument, dtype):
    message = refusal(form, **{argument: valid(form)[argument].to(dtype)})
    check(message, [argument], str(dtype).removeprefix("torch."))


@pytest.mark.parametrize(("form", "argument"), TENSORS)
def test_a_mix_of_devices_is_refused(form, argument):
    check(refusal(form, **{argument: valid(form)[argument].to("meta")}), [argument], "meta", "cpu")


def test_a_mask_on_another_device_is_refused():
    mask = torch.zeros(2, 10, dtype=torch.bool, device="meta")
    check(refusal(FUSED, padding_mask=mask), ["padding_mask"], "meta", "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64], ids=str)
def test_a_mask_that_is_not_boolean_is_refused(dtype):
    message = refusal(FUSED, padding_mask=torch.zeros(2, 10, dtype=dtype))
    check(message, ["padding_mask"], str(dtype).removeprefix("torch."), "bool")


@pytest.mark.parametrize("shape", [(2, 11), (3, 10), (10,), (2, 10, 1), (1, 10)], ids=str)
def test_a_mask_of_another_shape_is_refused(shape):
    message = refusal(FUSED, padding_mask=torch.zeros(shape, dtype=torch.bool))
    check(message, ["padding_mask"], shape_text(shape))


def test_a_mask_that_is_not_a_tensor_is_refused():
    check(refusal(FUSED, padding_mask=[[False] * 10] * 2), ["padding_mask"], "list")


# Shapes of the levels.


@pytest.mark.parametrize("form", [FUSED, CLASSIC])
@pytest.mark.parametrize(
    "spatial_shapes",
    [
        [],
        [(2, 3, 1), (4, 1, 1)],
        [(2,), (4,)],
        [2, 3, 4, 1],
        (2, 3),
        [(2.0, 3.0), (4.0, 1.0)],
        [(2, 3), (4, 1.0)],
        [(True, 6), (4, True)],
        [(-2, -3), (4, 1)],
        [(2, 3), (4, -1)],
        [("2", "3"), ("4", "1")],
        [(2, 3), None],
        None,
        10,
        "2341",
        torch.tensor([[2.0, 3.0], [4.0, 1.0]]),
        torch.tensor([2, 3, 4, 1]),
        torch.tensor([[2, 3, 1], [4, 1, 1]]),
        torch.tensor([[True, True], [True, True]]),
        torch.tensor([[-2, -3], [4, 1]]),
        torch.zeros(0, 2, dtype=torch.int64),
    ],
    ids=str,
)
def test_spatial_shapes_that_are_not_pairs_of_counts_are_refused(form, spatial_shapes):
    check(refusal(form, spatial_shapes=spatial_shapes), ["spatial_shapes"])


@pytest.mark.parametrize("form", [FUSED, CLASSIC])
def test_spatial_shapes_of_another_sum_are_refused_with_both_sums(form):
    message = refusal(form, spatial_shapes=[(2, 3), (5, 1)])
    check(message, ["spatial_shapes", "value"], "11", "10")


# Options.


@pytest.mark.parametrize("form", [FUSED, CLASSIC])
@pytest.mark.parametrize(
    ("option", "wrong", "choices"),
    [
        ("interpolation", "bicubic", ["bilinear", "nearest"]),
        ("interpolation", "Bilinear", ["bilinear", "nearest"]),
        ("interpolation", None, ["bilinear", "nearest"]),
        ("interpolation", ["nearest"], ["bilinear", "nearest"]),
        ("padding_mode", "reflection", ["zeros", "border"]),
        ("padding_mode", "", ["zeros", "border"]),
        ("padding_mode", 0, ["zeros", "border"]),
        ("backend", "cuda", BACKENDS),
        ("backend", "Reference", BACKENDS),
        ("backend", "", BACKENDS),
        ("backend", 1, BACKENDS),
    ],
    ids=str,
)
def test_an_unknown_option_is_refused_with_the_list_of_choices(form, option, wrong, choices):
    shown = repr(wrong) if not isinstance(wrong, str) else wrong
    check(refusal(form, **{option: wrong}), [option], shown, *choices)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, "0.5", None, [0.5], True, 1j], ids=str)
@pytest.mark.parametrize("coordinates", [2, 4])
def test_an_offset_scale_that_is_not_a_finite_number_is_refused(scale, coordinates):
    references = torch.ones(2, 7, 2, coordinates)
    check(refusal(FUSED, reference_points=references, offset_scale=scale), ["offset_scale"], str(scale))


@pytest.mark.parametrize("scale", [0.5, 2, 0, -1.5])
def test_any_finite_offset_scale_is_accepted(scale):
    references = torch.ones(2, 7, 2, 4)
    output = deformable_attention(**{**valid(FUSED), "reference_points": references}, offset_scale=scale)
    assert output.shape == (2, 7, 15)


@pytest.mark.parametrize("form", [FUSED, CLASSIC])
def test_options_are_keyword_only(form):
    with pytest.raises(TypeError):
        ENTRY_POINTS[form](*valid(form).values(), None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", [FUSED, CLASSIC])
def test_a_backend_asked_for_by_name_refuses_wrong_inputs_with_the_same_message(form, backend):
    wrong = {"value": torch.ones(2, 11, 3, 5)}
    assert refusal(form, **wrong, backend=backend) == refusal(form, **wrong)


@pytest.mark.parametrize("form", [FUSED, CLASSIC])
def test_wrong_inputs_are_refused_while_empty_or_without_gradients_as_well(form):
    call = functools.partial(refusal, form)
    with torch.no_grad():
        check(call(value=torch.ones(2, 0, 3, 5)), ["value", "spatial_shapes"], "10")
    check(call(value=torch.ones(0, 10, 3, 5)), list(valid(form)))
