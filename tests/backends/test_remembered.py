"""Calls that are remembered: which ones, which must not be, and that nobody can tell but by the clock."""

import pytest
import torch

from cases import CASES, case_id, inputs_of, named
from deform_attn import deformable_attention, multi_scale_deformable_attention, use_backend
from deform_attn.backends import kinds, remembered
from deform_attn.backends.kinds import Kinds

FORMS = pytest.mark.parametrize("form", ["fused", "classic"])
SHAPES = [(2, 3), (4, 1)]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(remembered, "_calls", Kinds())


@pytest.fixture
def short_calls(monkeypatch):
    """Return a list that grows with each call that takes the short way."""
    calls = []
    run = remembered._Call.__call__

    def note(remembered_call, tensors):
        calls.append(remembered_call)
        return run(remembered_call, tensors)

    monkeypatch.setattr(remembered._Call, "__call__", note)
    return calls


def call(form, case=None, dtype=torch.float32, change=lambda tensor: tensor, **options):
    inputs = inputs_of(case or named("encoder"), dtype)
    if form == "fused":
        tensors, entry_point, given = inputs.fused_tensors, deformable_attention, inputs.fused_options
    else:
        tensors, entry_point, given = inputs.classic_tensors, multi_scale_deformable_attention, inputs.classic_options
    value, *others = [change(tensor) for tensor in tensors]
    return entry_point(value, inputs.spatial_shapes, *others, **{**given, **options})


@FORMS
@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_second_call_is_short_and_gives_the_same_bits(form, case, dtype, short_calls):
    first, second = call(form, case, dtype), call(form, case, dtype)
    assert len(short_calls) == 1
    assert torch.equal(first, second)
    assert (second.dtype, second.stride()) == (first.dtype, first.stride())


@FORMS
def test_gradients_on_the_short_way_are_those_on_the_long_one(form, short_calls):
    grads = []
    for _ in range(2):
        inputs = inputs_of(named("encoder"), torch.float32)
        tensors = inputs.fused_tensors if form == "fused" else inputs.classic_tensors
        copies = {id(tensor): tensor.clone().requires_grad_() for tensor in tensors}
        output = call(form, change=lambda tensor, copies=copies: copies[id(tensor)])
        grads.append(torch.autograd.grad(output.sin().sum(), list(copies.values())))
    assert len(short_calls) == 1
    for actual, expected in zip(*grads, strict=True):
        assert torch.equal(actual, expected)
        assert (actual != 0).any()


@FORMS
def test_other_numbers_at_other_addresses_are_read(form, short_calls):
    expected = call(form, change=lambda tensor: tensor * 0.9, backend="reference")
    call(form, change=lambda tensor: tensor.clone())
    torch.testing.assert_close(call(form, change=lambda tensor: tensor * 0.9), expected)
    assert len(short_calls) == 1


@FORMS
def test_another_layout_is_another_key(form, short_calls):
    def strided(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    expected = call(form)
    for _ in range(2):
        torch.testing.assert_close(call(form, change=strided), expected)


@FORMS
def test_a_negated_view_is_read_with_its_sign(form, short_calls):
    def negated(tensor):
        return torch._neg_view(-tensor)

    expected = call(form)
    for _ in range(3):  # which are a kind of their own
        assert torch.equal(call(form, change=negated), expected)
    assert len(short_calls) == 2  # torch itself sees to the sign on the way to the kernel


@FORMS
def test_parameters_take_the_short_way_and_subclasses_do_not(form, short_calls):
    class Other(torch.Tensor):
        pass

    call(form)
    for _ in range(2):  # the class of a tensor is part of its kind
        call(form, change=lambda tensor: torch.nn.Parameter(tensor, requires_grad=False))
    assert len(short_calls) == 1
    for _ in range(2):
        call(form, change=lambda tensor: tensor.as_subclass(Other))
    assert len(short_calls) == 1


@FORMS
def test_another_backend_never_takes_it(form, short_calls):
    call(form)
    call(form, backend="reference")
    with use_backend("grid_sample"):
        call(form)
    assert short_calls == []
    with use_backend("native"):  # asked for by name, it is remembered under its name
        call(form)
        call(form)
    call(form)
    assert len(short_calls) == 2


# What a dict takes for the same as what was seen before, and the checks do not.
WRONG = {
    "a size that is True": {"spatial_shapes": [(2, 3), (4, True)]},
    "a size that is a float": {"spatial_shapes": [(2.0, 3), (4, 1)]},
    "a count that is True": {"num_points": [True, 1]},
    "counts that are floats": {"num_points": [1.0, 1.0]},
    "one count that is True": {"num_points": True},
    "an option that cannot be looked up": {"padding_mode": ["zeros"]},
    "a scale that is True": {"offset_scale": True},
}


@FORMS
@pytest.mark.parametrize("wrong", WRONG)
def test_what_equals_a_good_call_but_is_not_one_is_still_refused(form, wrong):
    if form == "classic" and "scale" in wrong:
        pytest.skip("the classic op has no scale")
    value = torch.ones(2, 10, 3, 5)
    if form == "fused":
        tensors = torch.ones(2, 7, 2), torch.ones(2, 7, 3, 2, 2), torch.ones(2, 7, 3, 2)
    else:
        tensors = torch.ones(2, 7, 3, 2, 2), torch.ones(2, 7, 3, 2)
    entry_point = deformable_attention if form == "fused" else multi_scale_deformable_attention
    for num_points in (1, [1, 1]):
        options = {"num_points": num_points, **({"offset_scale": 1} if form == "fused" else {})}
        for _ in range(2):
            entry_point(value, SHAPES, *tensors, **options)
    assert len(remembered._calls) == 2
    changed = {**options, "spatial_shapes": SHAPES, **WRONG[wrong]}
    with pytest.raises((TypeError, ValueError), match="expected"):
        entry_point(value, changed.pop("spatial_shapes"), *tensors, **changed)


@FORMS
def test_what_is_remembered_does_not_grow_without_end(form, monkeypatch):
    monkeypatch.setattr(remembered._calls, "most", 3)
    for case in CASES[:8]:
        call(form, case)
        assert 1 <= len(remembered._calls) <= 3


@FORMS
def test_of_calls_with_the_same_sizes_and_options_the_last_eight_layouts_are_remembered(form, short_calls):
    def padded(tensor, channels):
        wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + channels)
        wide[..., : tensor.shape[-1]] = tensor
        return wide[..., : tensor.shape[-1]]

    expected = call(form)
    for _ in range(2):
        for channels in range(1, 12):
            torch.testing.assert_close(call(form, change=lambda x, channels=channels: padded(x, channels)), expected)
    assert len(remembered._calls) == 1
    assert [len(kept) for kept in remembered._calls.values()] == [kinds.MOST_OF_A_KEY]
    assert short_calls == []
    for _ in range(2):
        call(form, change=lambda x: padded(x, 11))
    assert len(short_calls) == 2


@pytest.mark.parametrize("option", [{"padding_mode": "border"}, {"interpolation": "nearest"}])
def test_a_remembered_call_with_another_option_is_another_call(option):
    torch.manual_seed(0)
    value, locations, weights = torch.randn(1, 6, 1, 2), torch.full((1, 1, 1, 1, 1, 2), 0.1), torch.ones(1, 1, 1, 1, 1)
    call = value, [(2, 3)], locations, weights
    plain = [multi_scale_deformable_attention(*call) for _ in range(2)][-1]
    other = multi_scale_deformable_attention(*call, **option)
    torch.testing.assert_close(other, multi_scale_deformable_attention(*call, **option, backend="reference"))
    assert not torch.equal(plain, other)
