"""torch.jit.trace: what it records is saved, loaded where only deform_attn is imported, and right for other sizes."""

import io

import pytest
import torch

from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    deformable_attention,
    encoder_reference_points,
    multi_scale_deformable_attention,
    record,
    torch_names,
    use_backend,
)
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TransformerConfig
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.prediction.export_model import LastLayer
from every_backend import BACKENDS
from tolerances import assert_close

pytestmark = [
    # Of torch's own code torch itself shows none.
    pytest.mark.filterwarnings("error::torch.jit.TracerWarning", "ignore::torch.jit.TracerWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
]
M, D, L, P = 2, 4, 2, 3
SHAPES, OTHER_SHAPES = ((3, 4), (2, 1)), ((5, 2), (4, 7))
# Everything that the kernels compute runs in any process; these record torch's own operators.
CPU_BACKENDS = [name for name in BACKENDS if name != "triton"]


class Call(torch.nn.Module):
    """A function as a module, which alone torch.jit.trace takes with parameters."""

    def __init__(self, call, **modules):
        super().__init__()
        self.call = call
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *tensors):
        return self.call(*tensors)


def flat(maps):
    return torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2)


def points(batch, queries):
    """Return references, boxes, offsets, logits, locations, weights and queries."""
    of_points = batch, queries, M, L, P
    boxes = torch.cat((torch.rand(batch, queries, 2), torch.rand(batch, queries, 2) + 0.1), -1)
    return {
        "references": torch.rand(batch, queries, 2),
        "boxes": boxes,
        "offsets": torch.randn(*of_points, 2),
        "logits": torch.randn(batch, queries, M, L * P),
        "locations": 1.4 * torch.rand(*of_points, 2) - 0.2,
        "weights": torch.rand(of_points),
        "query": torch.randn(batch, queries, M * D),
    }


def draw(names, shapes=SHAPES, batch=2, queries=5, seed=0):
    """Return the tensors of these names; `maps` are several."""
    torch.manual_seed(seed)
    maps = [torch.randn(batch, M * D, H, W) for H, W in shapes]
    drawn = points(batch, queries) | {
        "value": flat(maps).unflatten(-1, (M, D)),
        "features": flat(maps),
        "sizes": torch.tensor(shapes),
        "narrow sizes": torch.tensor(shapes, dtype=torch.int16),
        "map": maps[0],
        "masks": [torch.rand(batch, H, W) < 0.3 for H, W in shapes],
        "mask": torch.rand(batch, sum(H * W for H, W in shapes)) < 0.3,
        "maps": maps,
        "ratios": 0.5 + torch.rand(batch, L, 2) / 2,
    }
    parts = [drawn[name] for name in names.split(", ")]
    return tuple(tensor for part in parts for tensor in (part if isinstance(part, list) else [part]))


def modules():
    torch.manual_seed(1)
    several = MultiScaleDeformableAttention(M * D, num_heads=M, num_levels=L, num_points=P)
    for parameter in several.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return several, DeformableAttention(M * D, num_heads=M, num_points=P)


def calls():
    """Return by name a module, the names of its arguments, and whether it is free in the sizes of the maps."""
    several, single = modules()

    def classic(value, sizes, locations, weights, **options):
        return multi_scale_deformable_attention(value, sizes, locations, weights, **options)

    def fused(value, sizes, references, offsets, logits, mask=None):
        return deformable_attention(value, sizes, references, offsets, logits, padding_mask=mask)

    def flat_points(value, a, b, references, offsets, logits):
        counts = [offsets.shape[4], P]
        options = {"num_points": counts, "interpolation": "nearest", "padding_mode": "border"}
        return deformable_attention(
            value, [a.shape[2:], b.shape[2:]], references, offsets.flatten(3, 4), logits, **options
        )

    def mixed(value, a, b, locations, weights):
        return classic(value, [(a.shape[2], a.size(3)), tuple(b.shape[-2:])], locations, weights)

    def masked(query, references, *maps):
        return several(query, references, list(maps[:L]), padding_mask=list(maps[L:]))

    def looked(query, references, *maps):
        output, sampling = several(query, references, maps, return_sampling=True)
        return output, sampling.locations, sampling.weights

    def encoder(ratios, *maps):
        return encoder_reference_points([x.shape[2:] for x in maps], ratios)

    return {
        "classic, ints": (Call(lambda v, *p: classic(v, SHAPES, *p)), "value, locations, weights", False),
        "classic, tensor": (Call(classic), "value, sizes, locations, weights", True),
        "classic, narrow tensor": (Call(classic), "value, narrow sizes, locations, weights", True),
        "classic, sizes of maps": (Call(mixed), "value, maps, locations, weights", True),
        "fused, ints": (Call(lambda v, *p: fused(v, SHAPES, *p)), "value, references, offsets, logits", False),
        "fused, tensor, mask": (Call(fused), "value, sizes, boxes, offsets, logits, mask", True),
        "fused, flat, sizes of maps": (Call(flat_points), "value, maps, references, offsets, logits", True),
        "module, ints": (
            Call(lambda q, r, f: several(q, r, f, SHAPES), several=several), "query, references, features", False,
        ),
        "module, tensor": (several, "query, boxes, features, sizes", True),
        "module, maps": (
            Call(lambda q, r, *x: several(q, r, x), several=several), "query, references, maps", True,
        ),
        "module, maps and masks": (Call(masked, several=several), "query, references, maps, masks", True),
        "module, sampling": (Call(looked, several=several), "query, references, maps", True),
        "module, one map": (single, "query, references, map", True),
        "encoder": (Call(encoder), "ratios, maps", True),
        "encoder, tensor": (Call(lambda sizes: encoder_reference_points(sizes)), "sizes", True),
    }  # fmt: skip


def trace(module, arguments, **options):
    """Return a module as it is read from the file that its trace was saved to."""
    with torch.no_grad():
        traced = torch.jit.trace(module, arguments, **options)
    content = io.BytesIO()
    torch.jit.save(traced, content)
    return torch.jit.load(io.BytesIO(content.getvalue()))


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def check(actual, expected):
    for one, other in zip(outputs(actual), outputs(expected), strict=True):
        assert_close(one, other.detach(), other.dtype)


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_loaded_trace_is_right_for_another_batch_other_queries_and_sizes_that_were_not_ints(name, backend):
    module, names, is_free = calls()[name]
    with use_backend(backend):
        loaded = trace(module, draw(names))
    shapes = OTHER_SHAPES if is_free else SHAPES
    for arguments in (draw(names, seed=2), draw(names, shapes, batch=3, queries=7), draw(names, shapes, 1, 1)):
        check(loaded(*arguments), module(*arguments))


def test_sizes_of_ints_are_constants_of_a_trace_which_refuses_maps_of_another_size():
    for name in ("classic, ints", "fused, ints", "module, ints"):
        module, names, _ = calls()[name]
        loaded = trace(module, draw(names))
        with pytest.raises(RuntimeError, match="spatial_shapes: expected sizes H\\*W that add up to S"):
            loaded(*draw(names, OTHER_SHAPES))


IN_A_PROCESS = "classic, sizes of maps", "fused, tensor, mask", "module, ints", "module, maps", "encoder"
LOADED = """
import sys, torch
IMPORT
for file in sys.argv[1:]:
    arguments, expected = torch.load(file + ".tensors")
    for _ in range(2):  # the second call is optimized by the executor
        torch.testing.assert_close(torch.jit.load(file)(*arguments), expected)
assert IMPORTED, "deform_attn" in sys.modules
"""


def saved(folder, name, module, loaded):
    """Write a trace, other arguments and what the module makes of them to files; return their name."""
    file, arguments = str(folder / name), draw(calls()[name][1], SHAPES, 3, 7)
    torch.jit.save(loaded, file)
    with torch.no_grad():
        torch.save([arguments, module(*arguments)], f"{file}.tensors")
    return file


def test_a_process_that_has_done_nothing_but_import_deform_attn_runs_the_file(children, tmp_path):
    files = []
    for name in IN_A_PROCESS:
        module, names, _ = calls()[name]
        files.append(saved(tmp_path, name, module, trace(module, draw(names))))
    code = LOADED.replace("IMPORTED", "True").replace("IMPORT", "import deform_attn")
    result = children.run(code, *files)
    assert result.returncode == 0, result.stderr


def test_a_trace_made_with_grid_sample_needs_no_import(children, tmp_path):
    files = []
    with use_backend("grid_sample"):
        for name in IN_A_PROCESS:
            module, names, _ = calls()[name]
            files.append(saved(tmp_path, name, module, trace(module, draw(names))))
    code = LOADED.replace("IMPORTED", "'deform_attn' not in sys.modules").replace("IMPORT", "")
    result = children.run(code, *files)
    assert result.returncode == 0, result.stderr


def test_a_file_without_the_import_says_which_op_is_missing(children, tmp_path):
    module, names, _ = calls()["classic, tensor"]
    torch.jit.save(trace(module, draw(names)), file := str(tmp_path / "classic.pt"))
    result = children.run("import sys, torch\ntorch.jit.load(sys.argv[1])", file)
    assert result.returncode == 1
    assert "deform_attn::multi_scale_deformable_attention" in result.stderr


@pytest.mark.parametrize("name", ["classic, sizes of maps", "fused, tensor, mask", "module, maps", "module, ints"])
def test_gradients_through_a_loaded_trace_are_those_of_the_module(name):
    module, names, is_free = calls()[name]
    loaded = trace(module, draw(names))
    for _ in range(3):  # later calls are optimized by the executor
        found = []
        for function in (loaded, module):
            arguments = draw(names, OTHER_SHAPES if is_free else SHAPES, 3, 7)
            floats = [tensor.requires_grad_() for tensor in arguments if tensor.is_floating_point()]
            output = function(*arguments)
            found.append(
                torch.autograd.grad(output.square().sum(), [*floats, *function.parameters()], allow_unused=True)
            )
        for actual, expected in zip(*found, strict=True):
            assert (actual is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_another_dtype_is_recorded_in_it(dtype):
    def cast(tensors):
        return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)

    for name in ("classic, tensor", "fused, tensor, mask", "module, maps", "module, one map"):
        module, names, _ = calls()[name]
        module = module.to(dtype)
        loaded, arguments = trace(module, cast(draw(names))), cast(draw(names, OTHER_SHAPES, 3, 7))
        assert loaded(*arguments).dtype == dtype
        check(loaded(*arguments), module(*arguments))


@pytest.mark.parametrize("name", ["classic, tensor", "fused, tensor, mask", "module, maps"])
def test_a_trace_under_autocast_keeps_its_dtype_outside_of_autocast(name):
    module, names, _ = calls()[name]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # torch cannot record its cache
        loaded, expected = trace(module, draw(names)), module(*draw(names, OTHER_SHAPES, 3, 7))
    assert expected.dtype == torch.bfloat16
    check(loaded(*draw(names, OTHER_SHAPES, 3, 7)), expected)


def test_a_wrong_argument_has_the_message_that_it_has_without_a_trace():
    value, sizes, locations, weights, references, offsets, logits = draw(
        "value, sizes, locations, weights, references, offsets, logits"
    )
    several, single = modules()
    query, features, maps, mask = *draw("query, features"), draw("maps"), draw("mask")[0]
    cases = [
        (multi_scale_deformable_attention, (value, sizes, locations[:1], weights)),
        (multi_scale_deformable_attention, (value, sizes + 1, locations, weights)),
        (multi_scale_deformable_attention, (value, sizes, locations, weights[..., :2])),
        (multi_scale_deformable_attention, (value, sizes.float(), locations, weights)),
        (deformable_attention, (value, sizes, references[:, :3], offsets, logits)),
        (deformable_attention, (value, sizes, references, offsets, logits[..., 1:])),
        (several, (query[..., 1:], references, features, sizes)),
        (several, (query, references, features[:, 1:], sizes)),
        (several, (query, references, features)),
        (single, (query, references, maps[0][:, 1:])),
        (lambda q, r, *x: several(q, r, x[:1]), (query, references, *maps)),
        (lambda q, r, m, *x: several(q, r, x, padding_mask=[m[:, None], m[:, None]]), (query, references, mask, *maps)),
        (lambda v, a, b, p, w: multi_scale_deformable_attention(v, [a.shape, b.shape], p, w), (
            value, *maps, locations, weights,
        )),
    ]  # fmt: skip
    for function, arguments in cases:
        with pytest.raises((ValueError, TypeError)) as expected:
            function(*arguments)
        with pytest.raises(type(expected.value)) as actual:
            torch.jit.trace(Call(function, several=several, single=single), arguments)
        assert str(actual.value) == str(expected.value)


def test_record_inside_a_trace_sees_the_example():
    (several, _), arguments = modules(), draw("query, references, maps")
    module = Call(lambda q, r, *x: several(q, r, x), several=several)
    with record(module) as records:
        module(*arguments)
        trace(module, arguments, check_trace=False)
    expected, actual = records
    assert (actual.name, actual.spatial_shapes) == ("several", SHAPES)
    torch.testing.assert_close(actual.locations, expected.locations)


def test_a_torch_without_the_names_that_pause_a_trace_is_named(monkeypatch):
    monkeypatch.setattr(torch_names.TRACING, "missing", ["torch._C._set_tracing_state"])
    module, names, _ = calls()["module, maps"]
    with pytest.raises(
        RuntimeError, match=r"torch\.jit\.trace cannot .* has no torch\._C\._set_tracing_state\. Use torch"
    ):
        torch.jit.trace(module, draw(names))


def test_torch_jit_script_of_a_module_is_refused_with_what_to_do():
    several, single = modules()
    for module in (several, single, torch.nn.Sequential(torch.nn.ReLU(), single)):
        with pytest.raises(TypeError, match=r"^torch\.jit\.script cannot compile \w*DeformableAttention\. Put torch"):
            torch.jit.script(module)


class Around(torch.nn.Module):
    """A model for torch.jit.script, with an attention inside and control flow of its own."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, query: torch.Tensor, reference: torch.Tensor, features: torch.Tensor, times: int):
        for _ in range(times):
            query = query + self.attention(query, reference, features)
        return query


def test_a_traced_attention_inside_a_scripted_model_runs():
    _, single = modules()
    scripted = torch.jit.script(Around(trace(single, draw("query, references, map"))))
    arguments = draw("query, references, map", OTHER_SHAPES, 3, 7)
    for times in (0, 3):
        check(scripted(*arguments, times), Around(single)(*arguments, times))


def test_torch_jit_script_compiles_calls_of_the_registered_op_with_sizes_in_ints_or_in_a_tensor():
    def by_tensor(value: torch.Tensor, sizes: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor):
        op = torch.ops.deform_attn.multi_scale_deformable_attention
        return op(value, sizes, locations.flatten(3, 4), weights.flatten(3), [3, 3], "bilinear", "zeros")

    def by_ints(value: torch.Tensor, sizes: list[int], locations: torch.Tensor, weights: torch.Tensor):
        op = torch.ops.deform_attn.multi_scale_deformable_attention
        return op(value, sizes, locations.flatten(3, 4), weights.flatten(3), [3, 3], "bilinear", "zeros")

    value, sizes, *rest = draw("value, sizes, locations, weights")
    expected = multi_scale_deformable_attention(value, SHAPES, *rest)
    check(torch.jit.script(by_tensor)(value, sizes, *rest), expected)
    check(torch.jit.script(by_ints)(value, sizes.flatten().tolist(), *rest), expected)


@pytest.mark.parametrize("name", ["module, tensor", "module, maps", "module, one map", "classic, tensor"])
def test_the_old_exporter_to_onnx_is_refused_with_what_to_use(name, tmp_path):
    module, names, _ = calls()[name]
    with pytest.raises(ValueError, match=r"^torch\.onnx\.export\(dynamo=False\) .*export\.to_onnx.*dynamo=True"):
        torch.onnx.export(module, draw(names), tmp_path / "attention.onnx", dynamo=False)


def detector(**options):
    transformer = {"width": 16, "num_heads": 2, "num_points": 2, "feedforward_dim": 16, "encoder_layers": 1}
    transformer |= {"decoder_layers": 1, "num_queries": 5}
    of_model = {"backbone": BackboneConfig(channels=(8, 8, 16, 16))}
    for name, option in options.items():
        (of_model if name == "exact_padding" else transformer)[name] = option
    torch.manual_seed(0)
    return LastLayer(build_model(ModelConfig(3, transformer=TransformerConfig(**transformer), **of_model))).eval()


def pictures(batch, height, width, padded=True):
    torch.manual_seed(batch)
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    if padded:
        mask[-1, height - height // 4 :] = True
        mask[-1, :, width - width // 4 :] = True
    return torch.rand(batch, 3, height, width), mask


@pytest.mark.parametrize(
    "options",
    [{}, {"two_stage": False}, {"attention": "dense"}, {"query_position": "fixed", "exact_padding": False}],
    ids=["default", "one stage", "dense", "as published"],
)
def test_a_trace_of_the_detector_is_free_in_batch_and_in_the_sizes_of_pictures(options):
    model = detector(**options)
    loaded = trace(model, pictures(2, 64, 96))
    for arguments in (pictures(3, 64, 96), pictures(1, 70, 110, padded=False), pictures(2, 128, 40)):
        with torch.no_grad():
            check(loaded(*arguments), model(*arguments))
