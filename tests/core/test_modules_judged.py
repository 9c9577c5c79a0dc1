"""What the modules judged once is not judged again; what differs from it in anything that was judged still is."""

import copy

import pytest
import torch
from torch import nn

from deform_attn import DeformableAttention, MultiScaleDeformableAttention
from deform_attn.backends.kinds import Kinds
from deform_attn.modules import judged

SHAPES = [(3, 4), (2, 3)]
N, Q, S = 2, 5, 18


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(judged, "_judged", Kinds())


@pytest.fixture
def judgements(monkeypatch):
    """Return a list that grows with each call whose arguments are judged."""
    calls = []
    for module in (MultiScaleDeformableAttention, DeformableAttention):
        name = "_judged_shapes" if module is MultiScaleDeformableAttention else "_judge"
        judge = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, judge=judge: (calls.append(args), judge(*args))[1])
    return calls


def multi():
    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(embed_dim=12, num_heads=3, num_levels=2, num_points=2)
    nn.init.normal_(module.sampling_offsets.weight)
    return module


def flat(**changes):
    generator = torch.Generator().manual_seed(1)
    arguments = {
        "query": torch.randn(N, Q, 12, generator=generator),
        "reference_points": torch.rand(N, Q, 2, generator=generator),
        "features": torch.randn(N, S, 12, generator=generator),
        "spatial_shapes": SHAPES,
    }
    return {**arguments, **changes}


def maps():
    features = [torch.randn(N, 12, H, W, generator=torch.Generator().manual_seed(H)) for H, W in SHAPES]
    return flat(features=features, spatial_shapes=None)


@pytest.mark.parametrize("arguments", [flat, maps])
def test_a_second_call_is_not_judged_and_gives_the_same_bits(arguments, judgements):
    module = multi()
    first, second = module(**arguments()), module(**arguments())
    assert len(judgements) == 1
    assert torch.equal(first, second)


def test_the_module_on_one_map_is_judged_once_too(judgements):
    module = DeformableAttention(embed_dim=12, num_heads=3)
    query, points, features = torch.randn(N, Q, 12), torch.rand(N, Q, 2), torch.randn(N, 12, 3, 4)
    assert torch.equal(module(query, points, features), module(query, points, features))
    assert len(judgements) == 1
    for wrong in ((query[:1], points, features), (query, points[..., :1], features), (query, points, features[:, :8])):
        with pytest.raises(ValueError, match="expected"):
            module(*wrong)


def test_modules_of_other_sizes_do_not_share_what_was_judged(judgements):
    multi()(**flat())
    other = MultiScaleDeformableAttention(embed_dim=12, num_heads=3, num_levels=1, num_points=2)
    with pytest.raises(ValueError, match="spatial_shapes: expected 1 pairs"):
        other(**flat())
    with pytest.raises(ValueError, match="query: expected"):
        MultiScaleDeformableAttention(embed_dim=24, num_heads=3, num_levels=2, num_points=2)(**flat())


WRONG = {
    "query of another width": {"query": torch.zeros(N, Q, 8)},
    "query of another batch": {"query": torch.zeros(1, Q, 12)},
    "query of another dtype": {"query": torch.zeros(N, Q, 12, dtype=torch.bfloat16)},
    "features of another dtype": {"features": torch.zeros(N, S, 12, dtype=torch.float64)},
    "features of another size": {"features": torch.zeros(N, S + 1, 12)},
    "sparse query": {"query": torch.zeros(N, Q, 12).to_sparse()},
    "no sizes": {"spatial_shapes": None},
    "a size that is True": {"spatial_shapes": [(3, 4), (2, True)]},
    "other sizes": {"spatial_shapes": [(4, 4), (2, 3)]},
    "meta features": {"features": torch.zeros(N, S, 12, device="meta")},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_refused_alike_before_and_after_a_right_call(wrong):
    module, said = multi(), []
    for _ in range(2):
        with pytest.raises((ValueError, TypeError)) as caught:
            module(**flat(**WRONG[wrong]))
        said.append((type(caught.value), str(caught.value)))
        module(**flat())
        module(**flat())
    assert said[0] == said[1]


def test_a_module_that_was_converted_is_judged_by_its_new_dtype():
    module = multi()
    for _ in range(2):
        module(**flat())
    module.double()
    with pytest.raises(TypeError, match="query: expected the module's dtype float64"):
        module(**flat())
    double = flat()
    double["query"], double["features"] = double["query"].double(), double["features"].double()
    assert module(**double).dtype == torch.float64


def test_a_dtype_that_autocast_allows_is_refused_outside_of_it():
    module, mixed = multi(), flat(query=flat()["query"].bfloat16())
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert module(**mixed).dtype == torch.bfloat16
        with pytest.raises(TypeError, match="query: expected the module's dtype float32"):
            module(**mixed)


def test_hooks_that_come_later_are_called_and_layers_that_are_exchanged_are_used():
    module = multi()
    expected = module(**flat())
    seen = []
    handles = [
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(layer)) for layer in module.children()
    ]
    assert torch.allclose(module(**flat()), expected, atol=1e-6)
    assert seen == [*list(module.children())[:2], module.value_proj, module.output_proj]
    for handle in handles:
        handle.remove()
    other = copy.deepcopy(module)
    other.value_proj = nn.Sequential(copy.deepcopy(module.value_proj), nn.Tanh())
    assert not torch.allclose(other(**flat()), expected)
    assert torch.equal(module(**flat()), expected)


def test_what_is_remembered_of_modules_does_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(judged._judged, "most", 3)
    for queries in range(1, 8):
        multi()(**flat(query=torch.zeros(N, queries, 12), reference_points=torch.zeros(N, queries, 2)))
        assert 1 <= len(judged._judged) <= 3


def one_level():
    return MultiScaleDeformableAttention(embed_dim=16, num_heads=2, num_levels=1, num_points=2)


# A map and a list of one, sizes that are there and that are not: what is right in one form is wrong in the other.
FORMS = {
    "a list of a flat tensor": ((torch.ones(1, 16, 16), [(4, 4)]), ([torch.ones(1, 16, 16)], [(4, 4)])),
    "a map alone": (([torch.ones(1, 16, 4, 4)],), (torch.ones(1, 16, 4, 4),)),
    "wrong sizes beside maps": (([torch.ones(1, 16, 4, 4)],), ([torch.ones(1, 16, 4, 4)], [(0, 0)])),
    "no sizes beside flat": ((torch.ones(1, 0, 16), [(0, 0)]), (torch.ones(1, 0, 16),)),
}


@pytest.mark.parametrize("form", FORMS)
def test_another_form_of_the_same_tensors_is_judged_anew(form):
    module, (right, wrong) = one_level(), FORMS[form]
    query, points = torch.ones(1, 3, 16), torch.rand(1, 3, 2)
    said = []
    for _ in range(2):
        with pytest.raises((ValueError, TypeError)) as caught:
            module(query, points, *wrong)
        said.append(str(caught.value))
        module(query, points, *right)
        module(query, points, *right)
    assert said[0] == said[1]


def test_a_bias_kept_as_a_buffer_and_a_linear_map_replaced_for_all_are_used(monkeypatch):
    module = multi()
    expected = module(**flat())
    frozen = multi()
    for layer in frozen.children():
        bias = layer.bias.detach()
        del layer.bias
        layer.register_buffer("bias", bias)
    torch.testing.assert_close(frozen(**flat()), expected)
    calls, forward = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: (calls.append(layer), forward(layer, x))[1])
    torch.testing.assert_close(module(**flat()), expected)
    assert len(calls) == 4
