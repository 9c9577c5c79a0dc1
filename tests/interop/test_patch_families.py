"""Families outside of transformers: how `patch` tells them apart, and what a patched module keeps."""

import copy
import io
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from family_modules import Detrex, DFine, GroundingDino, Mmcv, Original, RfDetr, RtDetr, RtDetrV2, Ultralytics
from torch import nn

import deform_attn
from deform_attn import patch, record, unpatch
from deform_attn.explore import Scene, write_page
from deform_attn.interop.families import FAMILIES
from tolerances import assert_close

SHAPES = [(5, 7), (3, 4)]
N, Q, C, S = 2, 6, 8, 47


@dataclass
class Case:
    family: str
    build: Any
    inputs: Any  # of (query, features, references, padding)
    options: dict[str, Any] = field(default_factory=dict)


def original_inputs(query, features, references, padding):
    sizes = torch.tensor(SHAPES)
    return (query, references, features, sizes, torch.tensor([0, 35]), padding), {}


def rfdetr_inputs(query, features, references, padding):
    args, _ = original_inputs(query, features, references[:, :, :1], padding)
    return args, {"input_spatial_shapes_hw": SHAPES}


def mmcv_inputs(query, features, references, padding):
    (key, value), position = (query, features), torch.linspace(-1, 1, query.numel(), dtype=query.dtype).view_as(query)
    if references.shape[-1] != 4:
        key, value, position = (tensor.transpose(0, 1) for tensor in (key, value, position))
    given = {"query_pos": position, "key_padding_mask": padding, "reference_points": references}
    starts = torch.tensor([0, 35])
    return (key, None, value), given | {"spatial_shapes": torch.tensor(SHAPES), "level_start_index": starts}


def rtdetr_inputs(query, features, references, padding):
    return (query, references, features, SHAPES), {"value_mask": ~padding}


def d_fine_inputs(query, features, references, padding):
    maps = features.unflatten(-1, (2, -1)).permute(0, 2, 3, 1).split([35, 12], -1)
    return (query, references[:, :, :1], maps, SHAPES), {}


def ultralytics_inputs(query, features, references, padding):
    return (query, references[:, :, :1], features, [list(pair) for pair in SHAPES], padding), {}


# 2-d references beside (nq, bs, C), boxes beside batch_first
CASES = {
    "original": Case("original", Original.MSDeformAttn, original_inputs),
    "ratio": Case("original", Original.MSDeformAttn, original_inputs, {"ratio": 0.5}),
    "ultralytics": Case("ultralytics", Ultralytics.MSDeformAttn, ultralytics_inputs),
    "rfdetr": Case("rfdetr", RfDetr.MSDeformAttn, rfdetr_inputs),
    "mmcv": Case("mmcv", Mmcv.MultiScaleDeformableAttention, mmcv_inputs, {"value_proj_ratio": 0.5}),
    "detrex": Case("detrex", Detrex.MultiScaleDeformableAttention, mmcv_inputs),
    "groundingdino": Case("groundingdino", GroundingDino.MultiScaleDeformableAttention, mmcv_inputs),
    "rtdetr": Case("rtdetr", RtDetr.MSDeformableAttention, rtdetr_inputs),
    "rtdetr v2": Case("rtdetr", RtDetrV2.MSDeformableAttention, rtdetr_inputs),
    "dfine": Case("dfine", DFine.MSDeformableAttention, d_fine_inputs),
}


class Model(nn.Module):
    """A model around one attention."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, *args, **kwargs):
        return self.attention(*args, **kwargs)


def built(case):
    torch.manual_seed(0)
    model = Model(case.build(**case.options)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def inputs_of(case, model, numbers=2):
    generator = torch.Generator().manual_seed(1)

    def draw(*sizes):
        return torch.rand(*sizes, generator=generator, dtype=torch.float64)

    if hasattr(model.attention, "batch_first"):
        model.attention.batch_first = numbers == 4
    padding = torch.arange(S).expand(N, S) % 5 == 0
    return case.inputs(draw(N, Q, C) - 0.5, draw(N, S, C) - 0.5, draw(N, Q, 2, numbers), padding)


def run(model, inputs):
    args, kwargs = inputs
    with torch.no_grad():
        return model(*args, **kwargs)


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return CASES[request.param]


def gradients(model, inputs):
    model.zero_grad()
    model(*inputs[0], **inputs[1]).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("numbers", [2, 4])
def test_a_patched_module_computes_what_the_stock_one_does(case, numbers):
    model = built(case)
    inputs = inputs_of(case, model, numbers)
    expected, slopes = run(model, inputs), gradients(model, inputs)
    report = patch(model)
    assert [(row.name, row.rule, row.reason) for row in report.replaced] == [("attention", case.family, None)]
    assert_close(run(model, inputs), expected, torch.float64)
    for name, slope in gradients(model, inputs).items():
        assert_close(slope, slopes[name], torch.float64)
    unpatch(model)
    assert torch.equal(run(model, inputs), expected)
    assert not {"forward", "compute_sampling"} & set(vars(model.attention))


def test_each_structure_fits_one_family_only(case):
    attention = built(case).attention
    assert [family.name for family in FAMILIES if family.structure.family_class(attention)] == [case.family]


def test_no_structure_fits_our_own_module_or_the_op_inside_transformers():
    transformers = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    ours = deform_attn.MultiScaleDeformableAttention(embed_dim=8, num_heads=2, num_levels=2, num_points=3)
    for module in (ours, transformers.MultiScaleDeformableAttention()):
        assert [family.name for family in FAMILIES if family.structure.family_class(module)] == []


def test_a_copy_and_what_was_pickled_or_saved_compute_with_their_own_parts(case):
    model = built(case)
    inputs = inputs_of(case, model)
    patch(model)
    expected = run(model, inputs)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for parameter in model.parameters():
        parameter.data.zero_()
    for other in others:
        assert other.attention.forward.args[0] is other.attention
        assert torch.equal(run(other, inputs), expected)


def test_a_record_holds_where_the_module_looks(case, tmp_path):
    model = built(case)
    inputs = inputs_of(case, model, 4)
    patch(model)
    with record(model) as records:
        output = run(model, inputs)
    (seen,) = records
    points = tuple(getattr(model.attention, "num_points_list", (3, 3)))
    assert (seen.name, seen.spatial_shapes, seen.num_points) == ("attention", tuple(SHAPES), points)
    weights = seen.weights.reshape(N, Q, 2, -1)
    assert_close(weights.sum(-1), torch.ones(N, Q, 2), torch.float64)
    assert torch.equal(run(model, inputs), output)
    page = tmp_path / "page.html"
    write_page(Scene(torch.rand(3, 10, 14), records), page)
    assert page.stat().st_size > 1000


def test_dropout_is_active_in_training_and_the_residual_is_not_dropped():
    for name in ("mmcv", "detrex"):
        case = CASES[name]
        model = built(case)
        args, kwargs = inputs_of(case, model)
        model.attention.dropout.p = 0.5
        model.train()
        torch.manual_seed(3)
        expected = run(model, (args, kwargs))
        patch(model)
        torch.manual_seed(3)
        assert_close(run(model, (args, kwargs)), expected, torch.float64)
        model.attention.dropout.p = 1.0
        assert torch.equal(run(model, (args, kwargs)), args[0])


def test_identity_its_older_name_and_a_missing_value_are_those_of_mmcv():
    case = CASES["mmcv"]
    model = built(case)
    (query, _, value), kwargs = inputs_of(case, model)
    identity = torch.full_like(query, 7.0)
    expected = run(model, ((query, None, value, identity), kwargs))
    alone = run(model, ((value,), kwargs | {"query_pos": None, "reference_points": kwargs["reference_points"][:, :1]}))
    patch(model)
    assert_close(run(model, ((query, None, value, identity), kwargs)), expected, torch.float64)
    assert_close(run(model, ((query, None, value), kwargs | {"residual": identity})), expected, torch.float64)
    kwargs |= {"query_pos": None, "reference_points": kwargs["reference_points"][:, :1]}
    assert_close(run(model, ((value,), kwargs)), alone, torch.float64)
    with pytest.raises(TypeError, match=r"^residual: expected one of identity and residual, got both"):
        model(query, None, value, identity, residual=identity, **kwargs)
    with pytest.raises(TypeError, match="reference_points: expected a tensor, got None"):
        model(query, None, value, spatial_shapes=torch.tensor(SHAPES))


def test_references_of_three_numbers_are_refused(case):
    model = built(case)
    inputs = inputs_of(case, model, 3)
    patch(model)
    with pytest.raises(ValueError, match="reference_points"):
        run(model, inputs)


def test_hooks_on_the_module_and_its_projections_are_called(case):
    model = built(case)
    inputs = inputs_of(case, model)
    patch(model)
    called = []
    for name, module in model.attention.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    run(model, inputs)
    assert sorted(called) == sorted(name for name, _ in model.attention.named_modules())


def test_a_wrapper_is_looked_into_and_patching_twice_changes_nothing(case):
    model = built(case)
    wrapped = nn.Sequential(model)
    assert len(patch(wrapped).replaced) == 1
    first = model.attention.forward
    report = patch(wrapped)
    assert (report.replaced, report.left[0].reason) == ([], "patched before")
    assert model.attention.forward is first


def left_reason(module):
    with pytest.raises(ValueError, match="deformable attention that a rule knows") as caught:
        patch(Model(module))
    assert "forward" not in vars(module)
    return str(caught.value)


def test_a_subclass_with_its_own_forward_is_left(case):
    class Other(case.build):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    reason = left_reason(Other(**case.options))
    assert f"its class overrides the forward of {case.build.__name__}" in reason


def test_a_module_that_another_tool_replaced_is_left(case):
    module = case.build(**case.options)
    module.forward = forward = lambda *args: None
    with pytest.raises(ValueError, match="another tool has replaced its forward"):
        patch(Model(module))
    assert module.forward is forward


def test_a_forward_with_another_signature_is_left():
    class MSDeformAttn(Original.MSDeformAttn):
        def forward(self, query, reference_points, input_flatten, input_spatial_shapes, sink):
            return sink

    reason = left_reason(MSDeformAttn())
    assert "its forward does not take input_level_start_index, input_padding_mask, as that of original does" in reason


def test_a_module_without_an_attribute_is_left():
    module = Original.MSDeformAttn()
    del module.n_points
    assert "it lacks n_points, which the class of original has" in left_reason(module)


def test_rfdetr_is_left_after_its_export():
    module = RfDetr.MSDeformAttn()
    module.export()
    assert "its export() was called, after which it computes for exporters" in left_reason(module)


def test_a_replaced_core_is_left():
    module = Original.MSDeformAttn()
    module.ms_deformable_attn_core = torch.add
    assert "its ms_deformable_attn_core is not ms_deform_attn_core_pytorch" in left_reason(module)
    module = DFine.MSDeformableAttention()
    module.ms_deformable_attn_core = torch.add
    assert "its ms_deformable_attn_core is not deformable_attention_core_func_v2" in left_reason(module)


def test_discrete_sampling_and_other_scales_of_the_repositories_are_left():
    for build in (RtDetrV2.MSDeformableAttention, DFine.MSDeformableAttention):
        assert "its sampling method is 'discrete'" in left_reason(build(method="discrete"))
        module = build()
        module.num_points_scale.mul_(2)
        assert "its scales of the points are not 1 / the points of their level" in left_reason(module)


def test_references_and_masks_for_all_images_are_broadcast():
    case = CASES["original"]
    model = built(case)
    (query, references, features, sizes, starts, padding), _ = inputs_of(case, model)
    inputs = (query, references[:1, :1], features, sizes, starts, padding[:1]), {}
    expected = run(model, inputs)
    patch(model)
    assert_close(run(model, inputs), expected, torch.float64)


def test_coordinates_stay_float32_in_half_precision(case):
    model = built(case)
    inputs = inputs_of(case, model)
    expected = run(model, inputs)
    patch(model.bfloat16())

    def rounded(thing):
        if isinstance(thing, tuple):
            return tuple(map(rounded, thing))
        floating = isinstance(thing, torch.Tensor) and thing.is_floating_point()
        return thing.bfloat16() if floating else thing

    args, kwargs = inputs
    output = run(model, (rounded(args), {name: rounded(thing) for name, thing in kwargs.items()}))
    assert output.dtype == torch.bfloat16
    assert (output.double() - expected).norm() < 0.05 * expected.norm()


def test_sizes_in_a_tensor_stay_one_in_a_compiled_graph():
    case = CASES["original"]
    model = built(case)
    inputs = inputs_of(case, model)
    patch(model)
    expected = run(model, inputs)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(run(compiled, inputs), expected, torch.float64)
