"""Errors of tensors that have no numbers in a grid: sparse, nested, quantized, uninitialized, meta and fake ones."""

import pytest
import torch
from calls import CLASSIC, ENTRY_POINTS, FUSED, SHAPES, TENSORS, check, refusal, valid
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    deformable_attention,
    encoder_reference_points,
    explain,
    multi_scale_deformable_attention,
)

FORMS = pytest.mark.parametrize("form", [FUSED, CLASSIC])


def compressed(layout):
    """Return what makes a sparse tensor of this layout, whatever the shape of the dense one."""
    block = (1, 1) if "bs" in layout else ()
    return lambda tensor: getattr(torch.ones(2, 3), f"to_sparse_{layout}")(*([block] if block else []))


OTHERS = {
    "coo": lambda tensor: tensor.to_sparse(),
    **{layout: compressed(layout) for layout in ("csr", "csc", "bsr", "bsc")},
    "mkldnn": lambda tensor: torch.ones(2, 3, 4, 5).to_mkldnn(),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor[0], tensor[0, :1]]),
    "jagged": lambda tensor: torch.nested.nested_tensor([tensor[0], tensor[0, :1]], layout=torch.jagged),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 1.0, 0, torch.quint8),
    "parameter": lambda tensor: UninitializedParameter(),
    "buffer": lambda tensor: UninitializedBuffer(),
}
KINDS = pytest.mark.parametrize("kind", OTHERS)
# By torch itself, on making such tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(prototype stage|beta state):UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quant.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quant.*:UserWarning"),
]


@KINDS
@pytest.mark.parametrize(("form", "argument"), TENSORS)
def test_a_tensor_of_the_functions_that_is_not_dense_is_refused(form, argument, kind):
    check(refusal(form, **{argument: OTHERS[kind](valid(form)[argument])}), [argument])


@KINDS
@pytest.mark.parametrize(("form", "argument"), TENSORS)
def test_explain_refuses_what_the_functions_refuse(form, argument, kind):
    call = {**valid(form), argument: OTHERS[kind](valid(form)[argument])}
    with pytest.raises((ValueError, TypeError), match=rf"^{argument}: expected "):
        explain(*call.values())


@KINDS
def test_a_mask_that_is_not_dense_is_refused(kind):
    check(refusal(FUSED, padding_mask=OTHERS[kind](torch.zeros(2, 10))), ["padding_mask"])


@KINDS
@FORMS
def test_sizes_in_a_tensor_that_is_not_dense_are_refused(form, kind):
    sizes = OTHERS[kind](torch.tensor(SHAPES).float())
    check(refusal(form, spatial_shapes=sizes), ["spatial_shapes"])
    with pytest.raises((ValueError, TypeError), match=r"^spatial_shapes: expected "):
        encoder_reference_points(sizes)


def freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


@FORMS
@pytest.mark.parametrize("make", [freed, lambda tensor: torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)])
def test_sizes_in_a_tensor_without_memory_are_refused(form, make):
    message = refusal(form, spatial_shapes=make(torch.tensor(SHAPES)))
    check(message, ["spatial_shapes"], "without memory")


@KINDS
def test_valid_ratios_that_are_not_dense_are_refused(kind):
    with pytest.raises((ValueError, TypeError), match=r"^valid_ratios: expected "):
        encoder_reference_points(SHAPES, OTHERS[kind](torch.ones(2, 2, 2)))


def module_call():
    """Return the arguments of a call of the module on two maps."""
    maps = [torch.ones(2, 6, H, W) for H, W in SHAPES]
    return {"query": torch.ones(2, 7, 6), "reference_points": torch.ones(2, 7, 2), "features": maps}


@KINDS
@pytest.mark.parametrize("argument", ["query", "reference_points", "features", "features[1]", "padding_mask[1]"])
def test_a_tensor_of_the_modules_that_is_not_dense_is_refused(argument, kind):
    module, call, make = MultiScaleDeformableAttention(6, num_heads=2, num_levels=2), module_call(), OTHERS[kind]
    if argument == "features[1]":
        call["features"][1] = make(call["features"][1])
    elif argument == "padding_mask[1]":
        call["padding_mask"] = [torch.zeros(2, 2, 3, dtype=torch.bool), make(torch.zeros(2, 4, 1))]
    else:
        call[argument] = make(torch.ones(2, 10, 6) if argument == "features" else call[argument])
    with pytest.raises((ValueError, TypeError)) as caught:
        module(**call)
    assert str(caught.value).startswith(f"{argument}: expected ")


@KINDS
@pytest.mark.parametrize("argument", ["query", "reference_points", "features"])
def test_a_tensor_of_the_single_map_module_that_is_not_dense_is_refused(argument, kind):
    call = {**module_call(), "features": torch.ones(2, 6, 2, 3)}
    call[argument] = OTHERS[kind](call[argument])
    with pytest.raises((ValueError, TypeError), match=rf"^{argument}: expected "):
        DeformableAttention(6, num_heads=2)(**call)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        (lambda call: call.update(query=call["query"].to("meta")), "query"),
        (lambda call: call.update(reference_points=call["reference_points"].to("meta")), "reference_points"),
        (lambda call: call["features"].__setitem__(1, call["features"][1].to("meta")), "features[1]"),
        (lambda call: call.update(features=torch.ones(2, 10, 6, device="meta"), spatial_shapes=SHAPES), "features"),
        (
            lambda call: call.update(padding_mask=[torch.zeros(2, H, W, device="meta").bool() for H, W in SHAPES]),
            "padding_mask",
        ),
    ],
)
def test_a_tensor_on_another_device_than_the_module_is_refused(change, argument):
    call = module_call()
    change(call)
    with pytest.raises(ValueError) as caught:  # compared below, brackets and all
        MultiScaleDeformableAttention(6, num_heads=2, num_levels=2)(**call)
    assert str(caught.value).startswith(f"{argument}: expected ")
    assert "device cpu, got meta" in str(caught.value)


def test_a_call_on_meta_tensors_alone_returns_one():
    for form in (FUSED, CLASSIC):
        call = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in valid(form).items()}
        output = ENTRY_POINTS[form](**call)
        assert (output.device.type, output.shape) == ("meta", (2, 7, 15))


# Fake tensors.


@FORMS
@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_call_on_fake_tensors_alone_returns_one(form, backend):
    with FakeTensorMode():
        assert ENTRY_POINTS[form](**valid(form), backend=backend).shape == (2, 7, 15)


def test_grid_sample_declares_that_it_cannot_look_at_fake_tensors():
    with FakeTensorMode():
        reasons = explain(*valid(CLASSIC).values()).reasons["grid_sample"]
    assert "meta and fake tensors have no numbers to look at for NaN" in reasons


@pytest.mark.parametrize(("form", "argument"), TENSORS)
def test_a_mix_of_fake_tensors_and_others_is_refused(form, argument):
    mode = FakeTensorMode()
    with mode:
        fake = valid(form)[argument]
    call = {**valid(form), argument: fake}
    named = list(call) if argument == "value" else [argument]
    with pytest.raises(ValueError, match="FakeTensor") as caught:
        ENTRY_POINTS[form](**call)
    check(str(caught.value), named)


@pytest.mark.parametrize("kind", ["meta", "fake", "complex", "float", "bool", "scalar", "pair", "batch of them"])
@FORMS
def test_sizes_in_a_tensor_without_a_grid_of_ints_are_refused(form, kind):
    sizes = torch.tensor(SHAPES)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(sizes)
    wrong = {
        "meta": sizes.to("meta"),
        "fake": fake,
        "complex": sizes.to(torch.complex64),
        "float": sizes.double(),
        "bool": sizes.bool(),
        "scalar": sizes.sum(),
        "pair": sizes[0],
        "batch of them": sizes[None],
    }[kind]
    shown = {"meta": "meta", "fake": "FakeTensor"}.get(kind, "tensor")
    check(refusal(form, spatial_shapes=wrong), ["spatial_shapes"], shown)


def test_sizes_that_a_transform_maps_over_are_refused():
    value, _, locations, weights = valid(CLASSIC).values()
    sizes = torch.tensor([SHAPES, SHAPES])
    with pytest.raises(ValueError, match=r"^spatial_shapes: expected pairs of ints .*, got .*torch\.vmap maps over"):
        torch.vmap(lambda sizes: multi_scale_deformable_attention(value, sizes, locations, weights))(sizes)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.uint64], ids=str)
def test_sizes_in_an_integer_tensor_of_any_width_are_taken(dtype):
    call = valid(FUSED)
    expected = deformable_attention(**call)
    assert torch.equal(deformable_attention(**{**call, "spatial_shapes": torch.tensor(SHAPES, dtype=dtype)}), expected)
