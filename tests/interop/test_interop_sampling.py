"""Where a patched module looks: said by the same function as for our own, edges and dtypes included."""

import copy
import pickle

import pytest
import torch
from torch import nn

import interop_cases
from deform_attn import MultiScaleDeformableAttention, patch, record
from deform_attn.recording import RecordingHook
from interop_cases import attentions

SHAPES = [(5, 7), (0, 4), (3, 2)]  # the level in the middle is empty
SIZES = {"embed_dim": 16, "num_heads": 2, "num_levels": 3, "num_points": 4}


@pytest.fixture
def stock():
    """An attention of transformers, of the sizes above, with parameters that look around."""
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrMultiscaleDeformableAttention

    torch.manual_seed(0)
    config = DeformableDetrConfig(d_model=16, num_feature_levels=3)
    module = DeformableDetrMultiscaleDeformableAttention(config, num_heads=2, n_points=4)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def ours_of(stock):
    module = MultiScaleDeformableAttention(**SIZES)
    module.load_state_dict(stock.state_dict())
    return module


@pytest.mark.parametrize("boxes", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_patched_module_and_ours_are_recorded_alike_with_an_empty_level_and_references_of_another_dtype(
    stock, boxes, dtype
):
    ours = ours_of(stock)
    patch(stock)
    torch.manual_seed(1)
    query, features = torch.randn(2, 6, 16), torch.randn(2, 5 * 7 + 3 * 2, 16)
    references = torch.rand(2, 6, 3, 4 if boxes else 2, dtype=dtype)
    with record(ours) as expected, record(stock) as actual, torch.no_grad():
        ours(query, references, features, SHAPES)
        stock(
            query,
            encoder_hidden_states=features,
            reference_points=references,
            spatial_shapes=torch.tensor(SHAPES),
            spatial_shapes_list=SHAPES,
        )
    assert len(expected) == len(actual) == 1
    assert actual[0].locations.dtype == dtype
    assert actual[0].locations.isfinite().all()
    assert actual[0].spatial_shapes == expected[0].spatial_shapes == tuple(SHAPES)
    assert torch.equal(actual[0].locations, expected[0].locations)
    assert torch.equal(actual[0].weights, expected[0].weights)


def test_what_a_pickle_of_a_patched_model_names_stays_where_it_is():
    """A model that was saved whole, patched, names these functions, and loads only while they are there."""
    model = interop_cases.build("grounding_dino")
    patch(model)
    named = {
        f"{value.func.__module__}.{value.func.__qualname__}"
        for module in model.modules()
        for name, value in vars(module).items()
        if name in ("forward", "compute_sampling")
    }
    assert named == {
        "deform_attn.interop.transformers.attention.forward",
        "deform_attn.interop.transformers.attention.compute_sampling",
        "deform_attn.interop.transformers.attention_weights.telling_forward",
    }
    families = {module.forward.args[1] for module in attentions(model).values()}
    assert families == {"grounding_dino"}
    assert all(
        name.encode() in pickle.dumps(model) for name in ("deform_attn.interop.transformers.attention", "forward")
    )


def test_a_hook_of_record_asks_for_no_attention_weights_and_any_other_hook_does(stock):
    patch(stock)
    query, features = torch.randn(1, 3, 16), torch.randn(1, 41, 16)
    call = {
        "encoder_hidden_states": features,
        "reference_points": torch.rand(1, 3, 3, 2),
        "spatial_shapes_list": SHAPES,
    }
    with record(stock), torch.no_grad():
        assert [type(hook) for hook in stock._forward_hooks.values()] == [RecordingHook]
        assert stock(query, **call)[1] is None
        twin = copy.deepcopy(stock)
        assert twin(query, **call)[1] is None
        handle = stock.register_forward_hook(lambda *_: None)
        assert stock(query, **call)[1] is not None
        handle.remove()
    assert not stock._forward_hooks
