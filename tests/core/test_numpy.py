"""NumPy's numbers and arrays as arguments: its ints are ints, and all else is refused by name."""

import pytest
import torch
from calls import CLASSIC, FLAT, FUSED, TENSORS, check, refusal, valid

from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    explain,
    multi_scale_deformable_attention,
    use_backend,
)

np = pytest.importorskip("numpy")
FORMS = pytest.mark.parametrize("form", [FUSED, CLASSIC])
ARRAYS = [np.array([1, 2]), np.array("zeros")]


@pytest.mark.parametrize(("form", "argument"), TENSORS)
def test_an_array_is_not_a_tensor(form, argument):
    array = np.ones(tuple(valid(form)[argument].shape))
    check(refusal(form, **{argument: array}), [argument], "ndarray")


def test_numbers_of_numpy_are_multiplied_as_ints():
    sizes = [(np.uint8(20), np.uint8(20)), (np.int16(1), np.int32(3))]
    value, locations, weights = torch.ones(1, 403, 1, 1), torch.rand(1, 4, 1, 6, 2), torch.ones(1, 4, 1, 6)
    output = multi_scale_deformable_attention(value, sizes, locations, weights, num_points=[np.uint8(5), np.int64(1)])
    assert output.shape == (1, 4, 1)


@FORMS
def test_arrays_are_neither_sizes_nor_counts(form):
    check(refusal(form, spatial_shapes=[np.array([2, 3])]), ["spatial_shapes"])
    for counts in ARRAYS:
        check(refusal(form, **FLAT[form], num_points=counts), ["num_points"])


@FORMS
@pytest.mark.parametrize("option", ["interpolation", "padding_mode", "backend"])
def test_an_array_is_not_an_option(form, option):
    for wrong in ARRAYS:
        check(refusal(form, **{option: wrong}), [option], "expected one of")
        with pytest.raises(ValueError, match=rf"^{option}: expected one of"):
            explain(*valid(form).values(), **{option: wrong})


def test_an_array_is_not_a_backend_for_a_block():
    for wrong in ARRAYS:
        with pytest.raises(ValueError, match=r"^backend: expected one of"):
            use_backend(wrong).__enter__()


@pytest.mark.parametrize("coordinates", [2, 4])
def test_an_offset_scale_in_an_array_or_of_numpys_floats_that_are_not_floats_is_refused(coordinates):
    references = torch.ones(2, 7, 2, coordinates)
    for scale in (np.float32(0.5), np.array([0.5]), np.float64("inf")):
        check(refusal(FUSED, reference_points=references, offset_scale=scale), ["offset_scale"], "a finite number")


@pytest.mark.parametrize("name", ["embed_dim", "num_heads", "num_levels", "num_points", "value_dim"])
def test_an_array_is_not_a_size_of_a_module(name):
    sizes = {"embed_dim": 32, "num_heads": 4, name: np.array([8, 8])}
    with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected "):
        MultiScaleDeformableAttention(**sizes)
    if name in ("embed_dim", "num_heads", "num_points"):
        with pytest.raises((ValueError, TypeError), match=rf"^{name}: expected "):
            DeformableAttention(**sizes)


def test_an_array_is_not_a_flag_of_a_module():
    wrong = np.array([True, False])
    with pytest.raises(TypeError, match=r"^bias: expected True or False"):
        MultiScaleDeformableAttention(8, num_heads=2, bias=wrong)
    module, features = MultiScaleDeformableAttention(8, num_heads=2, num_levels=1), [torch.ones(1, 8, 2, 3)]
    with pytest.raises(TypeError, match=r"^return_sampling: expected True or False"):
        module(torch.ones(1, 4, 8), torch.ones(1, 4, 2), features, return_sampling=wrong)


def test_masks_in_arrays_are_refused_by_their_kind():
    module = MultiScaleDeformableAttention(4, num_heads=2, num_levels=2)
    maps = [torch.ones(1, 4, 2, 3), torch.ones(1, 4, 1, 2)]
    masks = [np.zeros((1, 2, 3), bool), np.zeros((1, 1, 2), bool)]
    with pytest.raises(ValueError, match=r"^padding_mask: expected .*'ndarray'"):
        module(torch.ones(1, 5, 4), torch.rand(1, 5, 2), maps, padding_mask=masks)
