"""Real models of real packages, stock and patched: the same outputs, gradients and places."""

import copy

import pytest
import torch
from real_models import MODELS
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from deform_attn import patch, record, unpatch

# Relative to the norm of a tensor. Both sides round at each of some hundred operations, and a gradient is a sum that
# may cancel: one that is a small part of all gradients is judged by such a part of their norm. Whole models are
# compared in float64: what float32 rounds, the layers around the attentions multiply a thousandfold, and it decides
# between two proposals of nearly the same score. In float32 each attention is compared for itself.
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-11}
PART = 1e-3


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def built(case):
    """Return the stock model; a test that changes it takes a copy."""
    return case.model()


def attentions(case, model):
    return [module for module in model.modules() if type(module).__name__ == case.kind]


def outputs_and_gradients(case, model):
    """Return the outputs that depend on the attentions, and the gradients of all parameters, in float64."""
    outputs = case.run(model, torch.float64)
    loss = 0
    for i, output in enumerate(outputs.values()):
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(i)).double()
        loss = loss + (output * direction).sum() / output.detach().norm()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: output.detach() for name, output in outputs.items()}, gradients


def relative_error(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


def test_the_outputs_depend_on_what_the_attentions_read(case, built):
    changed = copy.deepcopy(built)
    assert len(attentions(case, changed)) == case.calls
    with torch.no_grad():
        for attention in attentions(case, changed):
            attention.output_proj.weight.zero_()
        expected, actual = (case.run(model, torch.float32) for model in (copy.deepcopy(built), changed))
    for name, output in expected.items():
        assert output.isfinite().all()
        assert relative_error(actual[name], output) > 1e-2, name


def assert_same(actual, expected):
    """Compare outputs and gradients, as `outputs_and_gradients` returns them."""
    (outputs, gradients), (expected_outputs, expected_gradients) = actual, expected
    for name, output in expected_outputs.items():
        assert relative_error(outputs[name], output) < RELATIVE[torch.float64], name
    assert gradients.keys() == expected_gradients.keys()
    total = torch.stack([gradient.norm() for gradient in expected_gradients.values()]).norm()
    for name, gradient in expected_gradients.items():
        error = (gradients[name] - gradient).norm() / torch.maximum(gradient.norm(), PART * total)
        assert error < RELATIVE[torch.float64], f"{name}: {error:.1e}, norms {gradient.norm():.1e} of {total:.1e}"


def test_the_comparison_sees_an_attention_that_looks_a_little_beside(case, built):
    stock, changed = (copy.deepcopy(built).double() for _ in range(2))
    with torch.no_grad():
        attentions(case, changed)[0].sampling_offsets.bias += 0.01
    expected = outputs_and_gradients(case, stock)
    assert_same(expected, expected)
    with pytest.raises(AssertionError):
        assert_same(outputs_and_gradients(case, changed), expected)


def test_outputs_and_all_gradients_are_those_of_the_stock_model(case, built, monkeypatch):
    stock, patched = (copy.deepcopy(built).double() for _ in range(2))
    report = patch(patched)
    assert len(report.replaced) == case.calls
    assert report.left == []
    expected = outputs_and_gradients(case, stock)
    monkeypatch.setattr(F, "grid_sample", None)  # whoever calls it fails
    assert_same(outputs_and_gradients(case, patched), expected)


def test_each_attention_gives_in_float32_what_the_stock_one_gives_for_the_same_call(case, built, monkeypatch):
    stock, patched = copy.deepcopy(built), copy.deepcopy(built)
    patch(patched)
    calls = []

    def capture(module, args, kwargs, output):
        calls.append(tree_map_only(torch.Tensor, torch.clone, (args, kwargs, output)))

    for module in attentions(case, stock):
        module.register_forward_hook(capture, with_kwargs=True)
    with torch.no_grad():
        case.run(stock, torch.float32)
        monkeypatch.setattr(F, "grid_sample", None)
        for module, (args, kwargs, expected) in zip(attentions(case, patched), calls, strict=True):
            assert relative_error(module(*args, **kwargs), expected) < RELATIVE[torch.float32]


def test_the_records_of_a_patched_model_are_the_places_that_the_stock_one_reads(case, built, monkeypatch):
    grids = []  # of each attention's levels, one after another
    sample = F.grid_sample

    def spy(maps, grid, **options):
        grids.append((grid + 1) / 2)
        return sample(maps, grid, **options)

    stock, patched = (copy.deepcopy(built).double() for _ in range(2))
    patch(patched)
    with torch.no_grad():
        monkeypatch.setattr(F, "grid_sample", spy)
        case.run(stock, torch.float64)
        monkeypatch.setattr(F, "grid_sample", None)
        with record(patched) as records:
            case.run(patched, torch.float64)
    assert len(records) == case.calls
    for entry in records:
        total = entry.weights.flatten(3).sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))
        for level in range(len(entry.spatial_shapes)):
            places = entry.locations[:, :, :, level].transpose(1, 2).flatten(0, 1)  # [N*M, Q, P, 2]
            torch.testing.assert_close(places, grids.pop(0), rtol=1e-9, atol=1e-9, check_dtype=False)
    assert grids == []


def test_after_unpatch_the_model_computes_what_it_did_bit_by_bit(case, built):
    model = copy.deepcopy(built)
    stock = copy.deepcopy(built)
    patch(model)
    unpatch(model)
    with torch.no_grad():
        expected, actual = (case.run(one, torch.float32) for one in (stock, model))
    assert all(torch.equal(actual[name], output) for name, output in expected.items())
