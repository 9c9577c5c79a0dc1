"""The doubles: what they compute are the numbers that the real modules computed."""

import copy

import pytest
import torch
from doubles import calls, extension, loading, sparse4d
from doubles.calls import FAMILIES, aggregated, outputs_and_gradients
from doubles.recorded import CALLS, FOLDER, assert_recorded, recorded


def test_every_family_has_its_file_of_numbers_with_repository_and_commit():
    given = {family: set(calls_of) for family, (_, _, calls_of) in FAMILIES.items()}
    given |= {"op": {"points", "edges"}, "sparse4d": {"aggregation"}}
    assert {path.stem for path in FOLDER.iterdir()} == set(given)
    for family, names in given.items():
        content = recorded(family)
        assert content["calls"].keys() == names
        assert len(content["commit"]) == 40
        assert content["repository"].count("/") == 1
        assert content["file"].endswith((".py", ".cu", ".cuh"))


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_a_double_computes_the_recorded_numbers(family, name, monkeypatch):
    call = FAMILIES[family][2][name]
    assert_recorded(outputs_and_gradients(loading.redrawn(monkeypatch, family, call), call), family, name)


def test_the_op_in_torch_computes_what_the_kernel_of_the_original_did():
    """The kernel's own code ran on a CPU. On the lines where reads end, torch has another gradient; not compared."""
    value, shapes, starts, locations, weights = calls.op(edges=False)
    output = extension.ms_deform_attn_forward(value, shapes, starts, locations, weights, 64)
    direction = calls.numbers(7, *output.shape)
    gradients = extension.ms_deform_attn_backward(value, shapes, starts, locations, weights, direction, 64)
    names = ("output", "value", "locations", "weights")
    assert_recorded(dict(zip(names, (output, *gradients), strict=True)), "op", "points")


def test_the_aggregation_of_sparse4d_computes_what_its_kernel_did():
    found = aggregated(sparse4d.deformable_aggregation_function)
    assert_recorded(found, "sparse4d", "aggregation", torch.float32)


def test_a_double_starts_as_the_real_module_does(monkeypatch):
    for family, (double, kind, given) in FAMILIES.items():
        module = getattr(loading.load(monkeypatch, double), kind)(**list(given.values())[-1].options)
        # The real one takes cosines in float32 of angles in float32; ours in float64, rounded once.
        torch.testing.assert_close(module.sampling_offsets.bias, torch.tensor(recorded(family)["start"]), msg=family)
        assert not module.attention_weights.weight.any(), family


def test_the_recorded_numbers_show_each_change_of_a_parameter_and_of_the_padding(monkeypatch):
    for family, name in CALLS:
        call = FAMILIES[family][2][name]
        module = loading.redrawn(monkeypatch, family, call)
        for key, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            changed = copy.deepcopy(module)
            with torch.no_grad():
                changed.get_parameter(key)[0] += 1e-6
            with pytest.raises(AssertionError):
                assert_recorded(outputs_and_gradients(changed, call), family, name)
    for family in ("deformable_detr", "detrex"):
        call = FAMILIES[family][2]["points"]
        names = [
            key for key, given in call.others.items() if isinstance(given, torch.Tensor) and given.dtype == torch.bool
        ]
        without = calls.Call(call.tensors, call.others | dict.fromkeys(names), call.options)
        assert len(names) == 1
        with pytest.raises(AssertionError):
            assert_recorded(
                outputs_and_gradients(loading.redrawn(monkeypatch, family, call), without), family, "points"
            )
