"""record(model): what it collects, and that it leaves no trace."""

import copy

import pytest
import torch
from torch import nn

from deform_attn import DeformableAttention, MultiScaleDeformableAttention, record

SHAPES = [(7, 11), (4, 6)]


class Layers(nn.Module):
    """Two kinds of attention, one of them called twice."""

    def __init__(self):
        super().__init__()
        self.several = MultiScaleDeformableAttention(24, num_heads=3, num_levels=2, num_points=[3, 1])
        self.single = DeformableAttention(24, num_heads=3, num_points=2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, query, references, maps):
        query = query + self.several(query, references, maps)
        query = query + self.several(query=query, reference_points=references, features=maps)
        return query + self.single(query, references, maps[0])


def inputs():
    torch.manual_seed(0)
    return torch.randn(2, 5, 24), torch.rand(2, 5, 2), [torch.randn(2, 24, H, W) for H, W in SHAPES]


def test_each_call_is_recorded_with_its_name_and_its_sampling():
    model, (query, references, maps) = Layers(), inputs()
    with record(model) as records:
        output = model(query, references, maps)
    assert [entry.name for entry in records] == ["several", "several", "single"]
    first, second, single = records
    _, sampling = model.several(query, references, maps, return_sampling=True)
    assert torch.equal(first.locations, sampling.locations)
    assert torch.equal(first.weights, sampling.weights)
    assert not torch.equal(second.locations, first.locations)
    assert first.locations.shape == (2, 5, 3, 4, 2)
    assert first.spatial_shapes == ((7, 11), (4, 6))
    assert (first.num_points, single.num_points) == ((3, 1), (2,))
    assert single.locations.shape == (2, 5, 3, 1, 2, 2)
    assert single.spatial_shapes == ((7, 11),)
    assert torch.equal(single.reference_points, references)
    assert not first.locations.requires_grad
    assert output.requires_grad


def test_recording_changes_no_output_and_ends_with_its_block_even_after_an_error():
    model, arguments = Layers(), inputs()
    expected = model(*arguments)
    with record(model) as records:
        assert torch.equal(model(*arguments), expected)
    assert len(records) == 3

    def fail_while_recording():
        with record(model):
            raise KeyError("from the block")

    with pytest.raises(KeyError):
        fail_while_recording()
    model(*arguments)
    assert len(records) == 3
    assert not any(module._forward_hooks for module in model.modules())


def test_the_locations_of_offsets_without_weights_are_those_of_the_start():
    attention = DeformableAttention(24, num_heads=3, num_points=2)
    query, _, maps = inputs()
    references = torch.full((2, 5, 2), 0.5)
    with record(attention) as records:
        attention(query, references, maps[0])
    entry = records[0]
    assert entry.name == ""
    # Head 0 looks along x: one and two pixels of a map 11 wide.
    expected = torch.tensor([[0.5 + 1 / 11, 0.5], [0.5 + 2 / 11, 0.5]])
    torch.testing.assert_close(entry.locations[0, 0, 0, 0], expected)
    torch.testing.assert_close(entry.weights, torch.full_like(entry.weights, 0.5))


def test_a_model_without_deformable_attention_is_refused():
    with pytest.raises(ValueError, match=r"^model: expected a module with a deformable attention inside, got Linear"):
        record(nn.Linear(2, 2)).__enter__()


@pytest.mark.parametrize("model", [None, nn.Linear, "model", [nn.Linear(2, 2)], torch.ones(2)], ids=str)
def test_what_is_not_a_module_is_refused(model):
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module, got "):
        record(model).__enter__()


def test_a_copy_made_inside_the_block_is_recorded_there_and_free_afterwards():
    model, arguments = Layers(), inputs()
    with record(model) as records:
        twin = copy.deepcopy(model)
        twin(*arguments)
    assert [entry.name for entry in records] == ["several", "several", "single"]
    twin(*arguments)
    assert len(records) == 3
