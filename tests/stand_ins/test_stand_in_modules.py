"""The classes and functions that code imports by name: signatures, start, and what they compute."""

import copy
import inspect
import math

import pytest
import torch
from torch.nn import functional as F

from deform_attn import MultiScaleDeformableAttention as Ours
from deform_attn import multi_scale_deformable_attention, patch, record
from deform_attn.stand_ins import mmcv, original
from tolerances import assert_close

SHAPES = [(6, 9), (3, 5)]
SIZES, STARTS = torch.tensor(SHAPES), torch.tensor([0, 54])
NAMES = {f"{part}.{kind}" for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
         for kind in ("weight", "bias")}  # fmt: skip


def parameters_of(function):
    parameters = list(inspect.signature(function).parameters.values())
    return [p.name if p.default is p.empty else (p.name, p.default) for p in parameters if p.name != "self"]


def redrawn(module):
    torch.manual_seed(1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double()


def twin_of(module, L=2, M=4, P=3):
    """Return our module, which tests/interop compares with other projects' own, with the same parameters."""
    twin = Ours(16, num_heads=M, num_levels=L, num_points=P).double()
    twin.load_state_dict(module.state_dict())
    return twin


def draw(boxes=False):
    torch.manual_seed(0)
    references = torch.rand(2, 7, 2, 4 if boxes else 2).double()
    return torch.randn(2, 7, 16).double(), references, torch.randn(2, 69, 16).double()


def test_the_signatures_are_those_of_the_other_projects():
    classic = ["value", "value_spatial_shapes", "value_level_start_index", "sampling_locations", "attention_weights"]
    core = ["value", "value_spatial_shapes", "sampling_locations", "attention_weights"]
    ours = {
        original.MSDeformAttn: [("d_model", 256), ("n_levels", 4), ("n_heads", 8), ("n_points", 4)],
        original.MSDeformAttn.forward: ["query", "reference_points", "input_flatten", "input_spatial_shapes",
            "input_level_start_index", ("input_padding_mask", None)],
        original.MSDeformAttnFunction.apply: [*classic, "im2col_step"],
        original.ms_deform_attn_core_pytorch: core,
        mmcv.MultiScaleDeformableAttnFunction.apply: [*classic, "im2col_step"],
        mmcv.multi_scale_deformable_attn_pytorch: core,
        mmcv.MultiScaleDeformableAttention: [("embed_dims", 256), ("num_heads", 8), ("num_levels", 4),
            ("num_points", 4), ("im2col_step", 64), ("dropout", 0.1), ("batch_first", False), ("norm_cfg", None),
            ("init_cfg", None), ("value_proj_ratio", 1.0)],
        mmcv.MultiScaleDeformableAttention.forward: ["query", *((name, None) for name in ("key", "value", "identity",
            "query_pos", "key_padding_mask", "reference_points", "spatial_shapes", "level_start_index")), "kwargs"],
    }  # fmt: skip
    assert {function: parameters_of(function) for function in ours} == ours


@pytest.mark.parametrize(
    "build",
    [
        lambda: original.MSDeformAttn(20, n_levels=3, n_heads=5, n_points=2),
        lambda: mmcv.MultiScaleDeformableAttention(20, num_heads=5, num_levels=3, num_points=2),
    ],
)
def test_parameters_start_as_the_published_ones_do(build):
    torch.manual_seed(3)
    module = build()
    assert set(module.state_dict()) == NAMES
    for name in ("sampling_offsets.weight", "attention_weights.weight", "attention_weights.bias"):
        assert module.get_parameter(name).eq(0).all(), name
    for name in ("value_proj", "output_proj"):
        weight = module.get_parameter(f"{name}.weight")
        bound = math.sqrt(6 / 40)
        assert 0.8 * bound < weight.abs().max() <= bound
        assert module.get_parameter(f"{name}.bias").eq(0).all()
    bias = module.sampling_offsets.bias.detach().view(5, 3, 2, 2)
    for m in range(5):
        x, y = math.cos(2 * math.pi * m / 5), math.sin(2 * math.pi * m / 5)
        for p in range(2):
            step = (p + 1) / max(abs(x), abs(y))
            assert_close(bias[m, :, p], torch.tensor([[step * x, step * y]] * 3), torch.float32)


def test_channels_that_the_heads_cannot_share_are_refused_by_name():
    with pytest.raises(ValueError, match="d_model: expected a multiple of n_heads = 3, got 16"):
        original.MSDeformAttn(16, n_heads=3)
    with pytest.raises(ValueError, match="embed_dims: expected a multiple of num_heads = 3, got 16"):
        mmcv.MultiScaleDeformableAttention(16, num_heads=3)
    with pytest.raises(ValueError, match=r"embed_dims \* value_proj_ratio: expected a multiple of .* 4, got 6"):
        mmcv.MultiScaleDeformableAttention(16, num_heads=4, value_proj_ratio=0.4)


@pytest.mark.parametrize("boxes", [False, True])
def test_the_original_module_equals_ours_forward_backward_and_in_what_is_recorded(boxes):
    module = redrawn(original.MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3))
    twin, mask = twin_of(module), torch.zeros(2, 69, dtype=torch.bool)
    mask[1, 40:] = True
    query, references, features = draw(boxes)
    with record(module) as records:
        output = module(query, references, features, SIZES, STARTS, input_padding_mask=mask)
    with record(twin) as expected_records:
        expected = twin(query, references, features, SHAPES, padding_mask=mask)
    assert_close(output, expected, torch.float64)
    output.sin().sum().backward()
    expected.sin().sum().backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad.abs().max() > 1e-3, name
        assert_close(module.get_parameter(name).grad, parameter.grad, torch.float64)
    assert torch.equal(records[0].locations, expected_records[0].locations)
    assert torch.equal(records[0].weights, expected_records[0].weights)
    assert (records[0].spatial_shapes, records[0].num_points) == (tuple(SHAPES), (3, 3))


def test_references_with_another_number_of_axes_and_wrong_starts_are_refused_by_name():
    query, references, features = draw()
    module = original.MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3).double()
    with pytest.raises(ValueError, match=r"^reference_points: expected"):
        module(query, references.repeat(1, 1, 1, 2)[..., :3], features, SIZES, STARTS)
    with pytest.raises(ValueError, match=r"^level_start_index: expected levels without gaps, \[0, 54\], got"):
        module(query, references, features, SIZES, STARTS + 1)
    other = mmcv.MultiScaleDeformableAttention(16, 4, 2, 3, batch_first=True).double()
    call = {"value": features, "spatial_shapes": SIZES, "level_start_index": STARTS}
    with pytest.raises(ValueError, match=r"^reference_points: expected"):
        other(query, reference_points=references[..., :1], **call)


def test_one_reference_or_mask_may_stand_for_all_images_or_queries_as_in_the_other_projects():
    query, references, features = draw()
    mask = torch.zeros(1, 69, dtype=torch.bool)
    mask[0, 40:] = True
    module = redrawn(original.MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3))
    other = redrawn(mmcv.MultiScaleDeformableAttention(16, 4, 2, 3, dropout=0.0, batch_first=True))
    for fewer in (references[:1], references[:, :1], references[:1, :1]):
        full = fewer.expand_as(references), mask.expand(2, -1)
        expected = module(query, full[0], features, SIZES, STARTS, full[1])
        assert torch.equal(module(query, fewer, features, SIZES, STARTS, mask), expected)
        named = {"value": features, "spatial_shapes": SIZES, "level_start_index": STARTS}
        actual = other(query, reference_points=fewer, key_padding_mask=mask, **named)
        assert torch.equal(actual, other(query, reference_points=full[0], key_padding_mask=full[1], **named))
        with record(module) as records:
            module(query, fewer, features, SIZES, STARTS)
        assert records[0].locations.shape[:2] == (2, 7)


@pytest.mark.parametrize("wrong", [[0.5, 0.5], torch.rand(1), torch.rand(())])
def test_references_and_masks_without_these_axes_are_refused_by_name(wrong):
    query, references, features = draw()
    module = original.MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3).double()
    with pytest.raises((ValueError, TypeError), match=r"^reference_points: expected"):
        module(query, wrong, features, SIZES, STARTS)
    with pytest.raises((ValueError, TypeError), match=r"^padding_mask: expected"):
        module(query, references, features, SIZES, STARTS, wrong)


@pytest.mark.parametrize("batch_first", [False, True])
def test_mmcvs_module_adds_position_identity_and_dropout_as_mmcv_does(batch_first):
    module = redrawn(mmcv.MultiScaleDeformableAttention(16, 4, 2, 3, dropout=0.5, batch_first=batch_first))
    twin, mask = twin_of(module), torch.zeros(2, 69, dtype=torch.bool)
    mask[0, :20] = True
    query, references, features = draw()
    position, identity = torch.randn(2, 2, 7, 16).double()
    attended = twin(query + position, references, features, SHAPES, padding_mask=mask)

    def laid_out(tensor):
        return tensor if batch_first else tensor.transpose(0, 1)

    common = {"reference_points": references, "spatial_shapes": SIZES, "level_start_index": STARTS}
    common |= {"query_pos": laid_out(position), "value": laid_out(features), "key_padding_mask": mask}
    torch.manual_seed(5)
    actual = module(laid_out(query), identity=laid_out(identity), **common)
    torch.manual_seed(5)
    assert_close(actual, F.dropout(laid_out(attended), 0.5) + laid_out(identity), torch.float64)
    module.eval()
    with record(module) as records:
        without_identity = module(laid_out(query), laid_out(query), **common)
    assert_close(without_identity, laid_out(attended + query), torch.float64)
    with record(twin) as expected:
        twin(query + position, references, features, SHAPES)
    assert torch.equal(records[0].locations, expected[0].locations)
    with pytest.warns(DeprecationWarning, match=r"^residual: "):
        assert torch.equal(
            module(laid_out(query), residual=laid_out(identity), **common),
            module(laid_out(query), identity=laid_out(identity), **common),
        )
    with pytest.raises(TypeError, match=r"^residual: expected one of"):
        module(laid_out(query), identity=query, residual=query, **common)


def test_mmcvs_value_is_the_query_without_its_position_where_it_is_left_out():
    module = redrawn(mmcv.MultiScaleDeformableAttention(16, 4, 2, 3, batch_first=True)).eval()
    twin = twin_of(module)
    features = draw()[2]
    position, references = torch.randn(2, 2, 69, 16).double()
    references = references[..., :4].unflatten(-1, (2, 2)).sigmoid()
    actual = module(features, query_pos=position, reference_points=references, spatial_shapes=SIZES)
    assert_close(actual, twin(features + position, references, features, SHAPES) + features, torch.float64)


def test_mmcvs_value_may_have_a_share_of_the_channels():
    module = redrawn(mmcv.MultiScaleDeformableAttention(16, 4, 2, 3, batch_first=True, value_proj_ratio=0.5)).eval()
    query, references, features = draw()
    assert module.value_proj.weight.shape == (8, 16)
    assert module.output_proj.weight.shape == (16, 8)
    with record(module) as records:
        actual = module(query, value=features, reference_points=references, spatial_shapes=SIZES)
    value = module.value_proj(features).unflatten(-1, (4, 2))
    heads = multi_scale_deformable_attention(value, SHAPES, records[0].locations, records[0].weights)
    assert_close(actual, module.output_proj(heads) + query, torch.float64)


def test_the_functions_are_the_classic_op_and_coordinates_keep_their_dtype():
    torch.manual_seed(0)
    value, locations, weights = torch.randn(2, 69, 4, 8), torch.rand(2, 7, 4, 2, 3, 2), torch.rand(2, 7, 4, 2, 3)
    for function in (original.ms_deform_attn_core_pytorch, mmcv.multi_scale_deformable_attn_pytorch):
        expected = multi_scale_deformable_attention(value, SHAPES, locations, weights)
        assert torch.equal(function(value, SIZES, locations, weights), expected)
    for function in (original.MSDeformAttnFunction, mmcv.MultiScaleDeformableAttnFunction):
        half = value.half().requires_grad_()
        expected = multi_scale_deformable_attention(half, SHAPES, locations, weights)
        output = function.apply(half, SIZES, STARTS, locations, weights, 64)
        assert torch.equal(output, expected)
        (grad,) = torch.autograd.grad(output.float().sum(), half)
        assert torch.equal(grad, torch.autograd.grad(expected.float().sum(), half)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_has_exact_coordinates(dtype):
    module = redrawn(original.MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3)).float()
    query, references, features = (tensor.float() for tensor in draw())
    narrow = copy.deepcopy(module).to(dtype)
    wide = copy.deepcopy(narrow).float()
    output = narrow(query.to(dtype), references, features.to(dtype), SIZES, STARTS)
    expected = wide(query.to(dtype).float(), references, features.to(dtype).float(), SIZES, STARTS)
    assert output.dtype == dtype
    assert (output.float() - expected).norm() < 2e-2 * expected.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(query, references, features, SIZES, STARTS).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_modules_compile_to_one_graph():
    query, references, features = draw()
    module = redrawn(original.MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3))
    other = redrawn(mmcv.MultiScaleDeformableAttention(16, 4, 2, 3, batch_first=True)).eval()
    compiled, other_compiled = (torch.compile(each, fullgraph=True, backend="aot_eager") for each in (module, other))
    call = query, references, features, SIZES, STARTS
    torch.testing.assert_close(compiled(*call), module(*call))
    named = {"value": features, "reference_points": references, "spatial_shapes": SIZES, "level_start_index": STARTS}
    torch.testing.assert_close(other_compiled(query, **named), other(query, **named))


def test_patch_leaves_a_stand_in_and_what_derives_from_it_as_its_own():
    class Derived(original.MSDeformAttn):
        def forward(self, *args):
            return super().forward(*args)

    modules = {"a": original.MSDeformAttn(16, 2, 4, 3), "b": Derived(16, 2, 4, 3)}
    modules["c"] = mmcv.MultiScaleDeformableAttention(16, num_heads=4, num_levels=2)
    with pytest.raises(ValueError, match="it is deform_attn's own"):
        patch(torch.nn.ModuleDict(modules))
    assert not any("forward" in vars(module) for module in modules.values())
