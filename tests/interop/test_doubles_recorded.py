"""The doubles: what they compute are the numbers that the real modules computed."""

import copy

import pytest
import torch
from doubles import calls, loading
from doubles.calls import FAMILIES, outputs_and_gradients
from doubles.recorded import CALLS, FOLDER, assert_recorded, recorded


def test_every_family_has_its_file_of_numbers_with_repository_and_commit():
    assert {path.stem for path in FOLDER.iterdir()} == set(FAMILIES)
    for family, (_, _, given) in FAMILIES.items():
        content = recorded(family)
        assert content["calls"].keys() == given.keys()
        assert len(content["commit"]) == 40
        assert content["repository"].count("/") == 1
        assert content["file"].endswith(".py")


@pytest.mark.parametrize(("family", "name"), CALLS)
def test_a_double_computes_the_recorded_numbers(family, name, monkeypatch):
    call = FAMILIES[family][2][name]
    assert_recorded(outputs_and_gradients(loading.redrawn(monkeypatch, family, call), call), family, name)


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
