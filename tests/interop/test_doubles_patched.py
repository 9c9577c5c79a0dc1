"""The doubles patched: the numbers of the real modules come out, and nothing of the double's own runs."""

import copy

import pytest
import torch
from doubles import calls, loading, parts
from doubles.calls import FAMILIES, outputs_and_gradients
from doubles.recorded import CALLS, assert_recorded

from deform_attn import patch, record, unpatch
from tolerances import assert_close

DISCRETE = ("deimv2_decoder", "discrete")


@pytest.fixture(params=[pair for pair in CALLS if pair != DISCRETE], ids=lambda pair: f"{pair[0]}, {pair[1]}")
def case(request):
    """Return the family, the name of the recorded call and the call."""
    family, name = request.param
    return family, name, FAMILIES[family][2][name]


def test_patched_it_computes_the_recorded_numbers_and_calls_neither_extension_nor_grid_sample(case, monkeypatch):
    family, name, call = case
    module = loading.redrawn(monkeypatch, family, call, loading.uncompiled)
    report = patch(module)
    assert (len(report.replaced), report.left) == (1, [])
    monkeypatch.setattr(torch.nn.functional, "grid_sample", None)  # whoever calls it fails
    assert_recorded(outputs_and_gradients(module, call), family, name)


def test_after_unpatch_it_computes_what_it_did_bit_by_bit(case, monkeypatch):
    family, _, call = case
    module = loading.redrawn(monkeypatch, family, call)
    before, state = outputs_and_gradients(module, call), dict(vars(module))
    patch(module)
    unpatch(module)
    assert dict(vars(module)).keys() == state.keys()
    after = outputs_and_gradients(module, call)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_a_record_of_a_patched_double_says_where_the_double_looks(case, monkeypatch):
    family, _, call = case
    module = loading.redrawn(monkeypatch, family, call)
    looked = []
    monkeypatch.setattr(
        parts, "look", lambda *given, look=parts.look, **options: looked.append(look(*given, **options)) or looked[-1]
    )
    expected = outputs_and_gradients(module, call)
    patch(module)
    with record(module) as records:
        found = outputs_and_gradients(module, call)
    ((locations, weights),), (entry,) = looked, records
    for actual, wanted in ((entry.locations, locations), (entry.weights, weights)):
        assert_close(actual.flatten(), wanted.detach().flatten(), torch.float64)
    assert_close(found["output"], expected["output"], torch.float64)


def test_dropout_of_a_patched_double_in_training_drops_what_it_drops_stock(monkeypatch):
    for family in ("detrex", "mmcv"):
        call = FAMILIES[family][2]["points"]
        module = loading.redrawn(monkeypatch, family, call).train()
        module.dropout.p = 0.5
        patched = copy.deepcopy(module)
        patch(patched)
        outputs = []
        for one in (module, patched):
            torch.manual_seed(0)
            outputs.append(outputs_and_gradients(one, call))
        for key, tensor in outputs[0].items():
            assert_close(outputs[1][key], tensor, torch.float64)
        with pytest.raises(AssertionError):
            assert_recorded(outputs[0], family, "points")


def test_references_of_three_numbers_are_refused_stock_and_patched(monkeypatch):
    for family in ("deformable_detr", "detrex", "deimv2_adapter"):
        call = FAMILIES[family][2]["points"]
        module = loading.redrawn(monkeypatch, family, call)
        references = torch.cat([call.tensors["reference_points"]] * 2, dim=-1)[..., :3]
        wrong = calls.Call(call.tensors | {"reference_points": references}, call.others)
        for prepare in (lambda stock: stock, patch):
            prepare(module)
            with pytest.raises(ValueError):
                outputs_and_gradients(module, wrong)


def test_a_discrete_double_is_left_with_its_reason(monkeypatch):
    """Its repository clamps both axes to the height, which is right on square maps only."""
    family, name = DISCRETE
    module = loading.redrawn(monkeypatch, family, FAMILIES[family][2][name])
    with pytest.raises(ValueError, match="discrete"):
        patch(module)
