"""Errors of sizes, counts and options: too large for any memory, and of kinds that compare or print badly."""

import pytest
import torch
from calls import CLASSIC, ENTRY_POINTS, FLAT, FUSED, SHAPES, check, refusal, valid

from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    deformable_attention,
    encoder_reference_points,
    explain,
    patch,
    use_backend,
)
from every_backend import BACKENDS

FORMS = pytest.mark.parametrize("form", [FUSED, CLASSIC])
HUGE = 10**5000  # longer than Python prints


def kind(wrong):
    """Return an id for what may be too long to print."""
    return type(wrong).__name__


TENSORS = [torch.ones(2), torch.ones(2, device="meta")]


@FORMS
@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize(
    "last",
    [(0, 2**63 - 1), (0, 2**40), (2**31, 0), (0, 2**64), (0, HUGE), (2**31, 2**31), (2**40, 2**40)],
    ids=kind,
)
def test_a_side_that_no_map_has_is_refused_the_same_on_every_backend(form, backend, last):
    message = refusal(form, spatial_shapes=[(5, 2), last], backend=backend)
    check(message, ["spatial_shapes"], "below 2^31")
    assert message == refusal(form, spatial_shapes=[(5, 2), last])


@FORMS
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_level_with_the_longest_side_is_taken(form, backend):
    sizes = [(5, 2), (0, 2**31 - 1)]
    output = ENTRY_POINTS[form](**{**valid(form), "spatial_shapes": sizes}, backend=backend)
    assert output.isfinite().all()


@FORMS
def test_more_pixels_than_a_memory_holds_are_refused(form):
    check(refusal(form, spatial_shapes=[(2**31 - 1, 2**31 - 1), (4, 1)]), ["spatial_shapes"], "2^47")


@pytest.mark.parametrize("sizes", [[(0, 2**40)], [(2**24, 2**24)], [(2**31 - 1, 2**31 - 1)], [(HUGE, 1)]], ids=kind)
def test_an_encoder_of_impossible_sizes_is_refused(sizes):
    with pytest.raises(ValueError, match=r"^spatial_shapes: expected "):
        encoder_reference_points(sizes)


@FORMS
@pytest.mark.parametrize("sizes", [[b"ab", b"cd"], b"abcd", [bytearray(b"ab")], "ab", {2: 3}], ids=kind)
def test_texts_and_bytes_are_not_sizes(form, sizes):
    check(refusal(form, spatial_shapes=sizes), ["spatial_shapes"])


# Counts of points.


@FORMS
@pytest.mark.parametrize("counts", [2**31, 2**63, 2**70, HUGE, [HUGE, 1], [2**40, -(2**40) + 8]], ids=kind)
def test_counts_that_no_tensor_has_are_refused(form, counts):
    check(refusal(form, **FLAT[form], num_points=counts), ["num_points"])
    check(refusal(form, num_points=counts), ["num_points"])


@FORMS
@pytest.mark.parametrize(
    "counts", ["44", b"\x04\x04", [[4], [4]], *TENSORS, torch.tensor(4), [torch.tensor(4)] * 2, {4}], ids=kind
)
def test_counts_of_another_kind_are_refused(form, counts):
    check(refusal(form, **FLAT[form], num_points=counts), ["num_points"])


# Options.


@FORMS
@pytest.mark.parametrize("option", ["interpolation", "padding_mode", "backend"])
@pytest.mark.parametrize("wrong", [*TENSORS, ["zeros"], b"zeros", ("native",), {}, object(), HUGE], ids=kind)
def test_an_option_that_is_not_a_text_is_refused(form, option, wrong):
    check(refusal(form, **{option: wrong}), [option], "expected one of")
    with pytest.raises(ValueError, match=rf"^{option}: expected one of"):
        explain(*valid(form).values(), **{option: wrong})


@pytest.mark.parametrize("wrong", [None, *TENSORS, ["reference"], b"reference", HUGE], ids=kind)
def test_a_backend_for_a_block_that_is_not_a_name_is_refused(wrong):
    with pytest.raises(ValueError, match=r"^backend: expected one of"):
        use_backend(wrong).__enter__()


@pytest.mark.parametrize(
    "model", [None, "model", torch.nn.Linear, torch.ones(2), [torch.nn.Linear(2, 2)], HUGE], ids=kind
)
def test_patch_refuses_what_is_not_a_module(model):
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module"):
        patch(model)


@pytest.mark.parametrize(
    "scale",
    [10**400, -(10**400), HUGE, torch.tensor(0.5), b"1"],
    ids=kind,
)
@pytest.mark.parametrize("coordinates", [2, 4])
def test_an_offset_scale_beyond_the_floats_or_in_a_tensor_is_refused(scale, coordinates):
    references = torch.ones(2, 7, 2, coordinates)
    check(refusal(FUSED, reference_points=references, offset_scale=scale), ["offset_scale"], "a finite number")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_offset_scale_is_the_same_as_an_int_or_a_float(backend):
    call = {**valid(FUSED), "reference_points": torch.rand(2, 7, 2, 4)}
    whole, real = (deformable_attention(**call, offset_scale=scale, backend=backend) for scale in (10**30, 1e30))
    assert torch.equal(whole, real)


@pytest.mark.parametrize(
    "wrong", [{"device": "nowhere"}, {"device": 1.5}, {"dtype": torch.int64}, {"dtype": "float32"}], ids=kind
)
def test_an_encoder_on_an_unknown_device_or_of_a_wrong_dtype_is_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=rf"^{next(iter(wrong))}: expected "):
        encoder_reference_points(SHAPES, **wrong)


# Modules.

SIZES = ["embed_dim", "num_heads", "num_levels", "num_points", "value_dim"]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [2**31, 2**63, 2**70, HUGE, -HUGE, "8", b"8", 8.0, True, torch.tensor(8)], ids=kind)
def test_a_module_of_a_size_that_is_not_one_is_refused(name, size):
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected "):
        MultiScaleDeformableAttention(**{"embed_dim": 32, "num_heads": 4, name: size})
    if name in ("embed_dim", "num_heads", "num_points"):
        with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected "):
            DeformableAttention(**{"embed_dim": 32, "num_heads": 4, name: size})


@pytest.mark.parametrize(
    "sizes",
    [
        {"embed_dim": 2**30},
        {"embed_dim": 2**20, "value_dim": 2**30},
        {"embed_dim": 2**20, "num_heads": 2**20, "num_points": 2**20},
    ],
    ids=kind,
)
def test_a_module_that_no_memory_holds_is_refused(sizes):
    with pytest.raises(ValueError, match=r"^embed_dim: expected projections of at most 2\^45 numbers"):
        MultiScaleDeformableAttention(**sizes)
    if "value_dim" not in sizes:
        with pytest.raises(ValueError, match=r"^embed_dim: expected projections of at most 2\^45 numbers"):
            DeformableAttention(**sizes)


@pytest.mark.parametrize("num_levels", [2**16, 2**31 - 1])
@pytest.mark.parametrize("num_points", [0, 4])
def test_a_module_of_more_levels_than_can_be_listed_is_refused_at_once(num_levels, num_points):
    with pytest.raises(ValueError, match=r"^num_levels: expected an int below 2\^16, got \d+\. "):
        MultiScaleDeformableAttention(8, num_levels=num_levels, num_points=num_points)


@pytest.mark.parametrize("wrong", [None, 1, "yes", torch.ones(2)], ids=kind)
def test_a_flag_that_is_not_a_bool_is_refused(wrong):
    with pytest.raises(TypeError, match=r"^bias: expected True or False"):
        MultiScaleDeformableAttention(8, num_heads=2, bias=wrong)
    module, features = MultiScaleDeformableAttention(8, num_heads=2, num_levels=1), [torch.ones(1, 8, 2, 3)]
    with pytest.raises(TypeError, match=r"^return_sampling: expected True or False"):
        module(torch.ones(1, 4, 8), torch.ones(1, 4, 2), features, return_sampling=wrong)


@pytest.mark.parametrize("features", [b"ab", "ab", {}, object()], ids=kind)
def test_features_that_are_neither_a_tensor_nor_a_list_are_refused(features):
    module = MultiScaleDeformableAttention(8, num_heads=2, num_levels=2)
    with pytest.raises(TypeError, match=r"^features: expected a tensor"):
        module(torch.ones(1, 4, 8), torch.ones(1, 4, 2), features)


def test_where_a_module_would_look_is_told_of_right_arguments_only():
    module, features = MultiScaleDeformableAttention(8, num_heads=2, num_levels=1), [torch.ones(1, 8, 2, 3)]
    with pytest.raises(ValueError, match=r"^reference_points: expected "):
        module.compute_sampling(torch.ones(1, 4, 8), torch.ones(1, 3, 2), features)
