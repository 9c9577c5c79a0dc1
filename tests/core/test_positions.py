"""Arguments by position: what other implementations take there, and ours by name, is refused with the way to say it."""

import inspect
import pickle

import pytest
import torch
from calls import CLASSIC, ENTRY_POINTS, FUSED, valid

from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    deformable_attention,
    multi_scale_deformable_attention,
)

MODULES = [DeformableAttention, MultiScaleDeformableAttention]
STARTS = torch.tensor([0, 6])  # level_start_index of two levels


@pytest.mark.parametrize("sizes", [(256, 8), (256, 4, 8), (256, 4, 8, 4)])
def test_sizes_by_position_are_refused_with_both_orders(sizes):
    with pytest.raises(TypeError) as caught:
        MultiScaleDeformableAttention(*sizes)
    assert "MSDeformAttn(d_model, n_levels, n_heads, n_points)" in str(caught.value)
    assert "embed_dim=..., num_levels=..., num_heads=..., num_points=..." in str(caught.value)
    assert str(caught.value).startswith("MultiScaleDeformableAttention: expected 1 argument by position (embed_dim)")


def test_sizes_of_the_single_map_module_by_position_are_refused_with_their_names():
    with pytest.raises(TypeError, match=r"embed_dim=\.\.\., num_heads=\.\.\., num_points=\.\.\."):
        DeformableAttention(256, 8, 4)


def test_sizes_by_position_are_refused_in_a_class_made_of_the_module():
    class Own(MultiScaleDeformableAttention):
        def __init__(self, *sizes):
            super().__init__(*sizes)

    assert Own(256).embed_dim == 256
    with pytest.raises(TypeError, match="MSDeformAttn"):
        Own(256, 4, 8, 4)


@pytest.mark.parametrize("position", [2, 4])
@pytest.mark.parametrize("form", [FUSED, CLASSIC])
def test_level_start_index_by_position_is_refused_as_not_needed(form, position):
    arguments = list(valid(form).values())
    arguments.insert(position, STARTS)
    for more in ([], [64]):  # im2col_step
        with pytest.raises(TypeError, match=r"^\w+: expected .* by position.*Leave out level_start_index"):
            ENTRY_POINTS[form](*arguments, *more)


def test_level_start_index_in_the_place_of_locations_is_refused_as_not_needed():
    value, shapes, _, weights = valid(CLASSIC).values()
    with pytest.raises(TypeError, match=r"^sampling_locations: .*level_start_index, leave it out"):
        multi_scale_deformable_attention(value, shapes, STARTS, weights)


def test_level_start_index_by_position_to_a_module_is_refused_as_not_needed():
    module, shapes = MultiScaleDeformableAttention(6, num_heads=2, num_levels=2), torch.tensor([[2, 3], [4, 1]])
    call = torch.ones(2, 7, 6), torch.ones(2, 7, 2), torch.ones(2, 10, 6), shapes, STARTS
    for more in ([], [torch.zeros(2, 10, dtype=torch.bool)]):
        with pytest.raises(TypeError, match=r"^MultiScaleDeformableAttention: .*Leave out level_start_index.*by name"):
            module(*call, *more)
    single = DeformableAttention(6, num_heads=2)
    with pytest.raises(TypeError, match=r"^DeformableAttention: .*Leave out spatial_shapes, level_start_index"):
        single(call[0], call[1], torch.ones(2, 6, 2, 5), [(2, 5)], STARTS[:1])


@pytest.mark.parametrize(
    "function",
    [*ENTRY_POINTS.values(), *MODULES, *[module.forward for module in MODULES]],
    ids=lambda function: function.__qualname__,
)
def test_the_signatures_show_a_bare_star(function):
    signature = inspect.signature(function)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    assert inspect.Parameter.VAR_POSITIONAL not in kinds
    assert "others" not in str(signature)
    if function is not DeformableAttention.forward:
        assert inspect.Parameter.KEYWORD_ONLY in kinds


def test_what_is_shown_with_a_bare_star_can_be_pickled():
    assert pickle.loads(pickle.dumps(deformable_attention)) is deformable_attention
