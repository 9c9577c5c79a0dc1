"""What remembered calls keep: the errors of bad calls, the numbers of outputs, no tensor, and 1024 kinds at most."""

import gc
import weakref

import pytest
import torch
from warm_calls import ENTRY_POINTS, check, kind_of

from deform_attn import deformable_attention, multi_scale_deformable_attention, use_backend
from deform_attn.backends import remembered

FORMS = pytest.mark.parametrize("form", ENTRY_POINTS)


@FORMS
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_bad_call_after_warm_ones_gives_the_error_of_a_cold_call(form, warm):
    kind = warm(kind_of(form))
    for change in (
        lambda x: x.repeat_interleave(2, 2),
        lambda x: x[:, :1],
        lambda x: x.long(),
        lambda x: x.cfloat(),
        lambda x: x.tolist(),
        lambda x: None,
        lambda x: x.to(torch.float8_e4m3fn),
        lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    ):
        for which in range(len(kind.tensors)):
            given = [change(tensor) if i == which else tensor for i, tensor in enumerate(kind.tensors)]
            messages = []
            for state in ("warm", "cold"):
                if state == "cold":
                    remembered._calls.clear()
                with pytest.raises((TypeError, ValueError)) as caught:
                    kind(*given)
                messages.append(str(caught.value))
            assert messages[0] == messages[1]
            assert "expected" in messages[0]
            warm(kind)


@FORMS
def test_an_output_written_into_changes_no_later_warm_call(form, warm):
    kind = warm(kind_of(form))
    expected = kind.on("reference")(*kind.tensors)
    for _ in range(3):
        output = kind()
        check(output, expected)
        output.fill_(torch.nan)
    outputs = [kind() for _ in range(3)]
    assert len({output.data_ptr() for output in outputs}) == 3
    kind.tensors[0].mul_(2)
    check(kind(), kind.on("reference")(*kind.tensors))


def test_a_list_of_sizes_changed_in_place_is_another_call(cold):
    kind = kind_of("classic")
    value, locations, weights = kind.tensors
    sizes = [[3, 2], [2, 4]]
    for _ in range(3):
        multi_scale_deformable_attention(value, sizes, locations, weights)
    sizes[0][:] = 2, 3
    actual = multi_scale_deformable_attention(value, sizes, locations, weights)
    check(actual, multi_scale_deformable_attention(value, sizes, locations, weights, backend="reference"))
    check(multi_scale_deformable_attention(value, [[3, 2], [2, 4]], locations, weights), kind())
    assert not torch.allclose(actual, kind())


@FORMS
def test_a_tensor_of_sizes_changed_in_place_is_read_again(form, cold):
    kind = kind_of(form)
    sizes = torch.tensor([[3, 2], [2, 4]])
    function = {"fused": deformable_attention, "classic": multi_scale_deformable_attention}[form]
    for _ in range(3):
        output = function(kind.tensors[0], sizes, *kind.tensors[1:])
    check(output, function(kind.tensors[0], [(3, 2), (2, 4)], *kind.tensors[1:], backend="reference"))
    sizes[0] = torch.tensor([2, 3])
    actual = function(kind.tensors[0], sizes, *kind.tensors[1:])
    check(actual, function(kind.tensors[0], [(2, 3), (2, 4)], *kind.tensors[1:], backend="reference"))
    assert not torch.allclose(actual, output)
    sizes[0] = torch.tensor([5, 5])
    with pytest.raises(ValueError, match=r"expected"):
        function(kind.tensors[0], sizes, *kind.tensors[1:])


def test_a_mask_given_or_not_and_a_scale_are_seen_in_warm_calls(warm):
    kind = warm(kind_of("fused"))
    boxes = torch.cat([kind.tensors[1], kind.tensors[1].flip(1) * 0.5 + 0.2], -1)
    outputs = []
    for _ in range(3):
        for mask in (None, kind.mask, ~kind.mask):
            for references, scale in ((kind.tensors[1], 0.5), (boxes, 0.5), (boxes, 1.25), (boxes, 1)):
                tensors = kind.tensors[0], references, *kind.tensors[2:]
                output = kind.function(*tensors, padding_mask=mask, offset_scale=scale)
                with use_backend("reference"):
                    check(output, kind.function(*tensors, padding_mask=mask, offset_scale=scale))
                outputs.append(output)
    first = outputs[: len(outputs) // 3]
    assert not any(torch.allclose(a, b) for i, a in enumerate(first) for b in first[:i])


@FORMS
@pytest.mark.parametrize("requires_grad", [False, True])
def test_what_is_remembered_keeps_no_tensor_alive(form, requires_grad, warm):
    kind = warm(kind_of(form, masked=False))
    tensors = kind.leaves() if requires_grad else [tensor.clone() for tensor in kind.tensors]
    output = kind(*tensors)
    if requires_grad:
        output.sum().backward()
    watched = [weakref.ref(tensor) for tensor in (*tensors, output)]
    assert len(remembered._calls) > 0
    del tensors, output
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_at_most_1024_kinds_are_remembered_and_all_are_right(cold):
    assert remembered._calls.most == 1024
    weights = torch.ones(1, 1, 1, 1, 1)
    for width in range(1, 1100):
        value = torch.arange(1.0, width + 1).view(1, width, 1, 1)
        last = torch.tensor([1 - 0.5 / width, 0.5]).view(1, 1, 1, 1, 1, 2)  # the middle of the last pixel
        outputs = [multi_scale_deformable_attention(value, [(1, width)], last, weights) for _ in range(2)]
        for output in outputs:
            torch.testing.assert_close(output, torch.full((1, 1, 1), float(width)))
        assert 1 <= len(remembered._calls) <= 1024
