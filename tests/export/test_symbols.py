"""Symbols: what a model's code makes numbers of elsewhere stays free while it is traced for a file."""

import pytest
import torch

from deform_attn.export import symbols


def torch_int(x):
    """Return what transformers' function of this name does of a size."""
    return int(x)


def lengths(features):
    return torch.zeros(len(features), 2)


def integers(features):
    return torch.zeros(torch_int(features.shape[2]), 2)


def sizes(features):
    return torch.as_tensor([(side, side + 1) for side in features.shape[2:]], dtype=torch.long)


def centres(features):
    height = features.shape[2]
    return torch.linspace(0.5, height - 0.5, height, dtype=torch.float64)


class Model(torch.nn.Module):
    """A function of features as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, features):
        return self.function(features[:, :, ::2])


def traced(function):
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    return torch.export.export(Model(function), (torch.rand(2, 4, 10, 7),), dynamic_shapes=(free,), strict=False)


@pytest.mark.parametrize("function", [lengths, integers, sizes, centres])
def test_a_size_that_is_made_a_number_of_stays_free(function):
    features = torch.rand(3, 4, 16, 9)
    with symbols.kept(Model(function)):
        program = traced(function)
    assert torch.equal(program.module()(features), Model(function)(features))
    assert torch.equal(program.module()(features[:, :, :6]), Model(function)(features[:, :, :6]))
    fixed = traced(function)
    with pytest.raises(AssertionError, match="Guard failed"):
        fixed.module()(features)


def test_what_the_names_mean_is_as_before_afterwards():
    before = dict(globals())
    model = Model(lengths)
    with symbols.kept(model):
        assert globals()["torch_int"] is not before["torch_int"]
        assert len([1, 2]) == 2
        assert torch_int(3.5) == 3
        assert torch.as_tensor([(1, 2)]).tolist() == [[1, 2]]
        assert torch.linspace(0, 1, 3).tolist() == [0, 0.5, 1]
        globals()["of_the_block"] = True
    assert globals().pop("of_the_block")
    assert dict(globals()) == before
    assert not model._forward_pre_hooks


def test_a_mask_has_the_size_of_its_image():
    class Masked(torch.nn.Module):
        def forward(self, mask, images, others):
            return images * mask[:, None], others

    free = torch.export.Dim.AUTO
    shapes = {"mask": {0: free, 1: free, 2: free}, "images": {0: free, 2: free, 3: free}, "others": {1: free}}
    model, example = Masked(), (torch.ones(2, 5, 6), torch.rand(2, 3, 5, 6), torch.rand(2, 6))
    with symbols.kept(model):
        program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
    mask, images, others = (node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder")
    assert [str(size) for size in mask] == [str(images[axis]) for axis in (0, 2, 3)]
    assert str(others[1]) != str(mask[2])
