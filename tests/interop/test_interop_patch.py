"""patch and unpatch: what they keep, what they report, what they refuse, and what a patched model survives."""

import concurrent.futures
import copy
import inspect
import io
import pickle
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, DeformableDetrForObjectDetection

import interop_cases
from deform_attn import DeformableAttention, patch, record, unpatch
from deform_attn.interop.transformers.families import RULES
from interop_cases import CASES, attentions, run

NAME = "deformable_detr"
ATTENTION = "model.decoder.layers.1.encoder_attn"
# Transformers 5.0 replaces forwards for a while instead.
CAPTURES_BY_HOOKS = find_spec("transformers.utils.output_capturing") is not None


@pytest.fixture(scope="module")
def built():
    return interop_cases.build(NAME)


@pytest.fixture
def model(built):
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def inputs():
    return CASES[NAME].inputs()


@pytest.fixture(scope="module")
def expected(built, inputs):
    with torch.no_grad():
        return run(copy.deepcopy(built), inputs).logits


def stock_calls(model, inputs, monkeypatch):
    """Return the output, and how often it took grid_sample, which ours never calls where the CPU kernels are."""
    calls = []
    original = F.grid_sample
    with monkeypatch.context() as context, torch.no_grad():
        context.setattr(F, "grid_sample", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
        return run(model, inputs).logits, len(calls)


def assert_runs_ours(model, inputs, expected, monkeypatch):
    output, calls = stock_calls(model, inputs, monkeypatch)
    assert calls == 0
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_the_stock_model_takes_grid_sample_on_every_level(model, inputs, expected, monkeypatch):
    output, calls = stock_calls(model, inputs, monkeypatch)
    assert calls == 3 * 4
    assert torch.equal(output, expected)


def test_a_patched_module_keeps_its_class_its_parts_and_its_hooks(model, inputs, expected, monkeypatch):
    before = {name: (module, type(module)) for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    seen = []
    model.get_submodule(ATTENTION).value_proj.register_forward_hook(lambda *_: seen.append("value_proj"))
    model.get_submodule(ATTENTION).register_forward_pre_hook(lambda *_: seen.append("attention"))
    patch(model)
    assert {name: (module, type(module)) for name, module in model.named_modules()} == before
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert_runs_ours(model, inputs, expected, monkeypatch)
    assert seen == ["attention", "value_proj"]


def test_the_report_says_what_was_replaced_and_by_which_rule(model):
    report = patch(model)
    assert [row.name for row in report.replaced] == list(attentions(model))
    assert {(row.rule, row.kind, row.reason) for row in report.replaced} == {
        (NAME, "DeformableDetrMultiscaleDeformableAttention", None)
    }
    assert report.left == []
    lines = str(report).splitlines()
    assert lines[0] == "3 of 3 deformable attentions replaced"
    assert len({line.index("deformable_detr  ") for line in lines[2:]}) == 1
    assert lines[-1].split() == [ATTENTION, "DeformableDetrMultiscaleDeformableAttention", NAME, "replaced"]


def test_patching_twice_changes_nothing(model):
    patch(model)
    forwards = [module.forward for module in attentions(model).values()]
    again = patch(model)
    assert again.replaced == []
    assert {row.reason for row in again.left} == {"patched before"}
    assert all(module.forward is forward for module, forward in zip(attentions(model).values(), forwards, strict=True))
    with again:
        pass
    assert "forward" in vars(model.get_submodule(ATTENTION))


def test_a_block_undoes_at_its_end_even_after_an_error(model, inputs, expected, monkeypatch):
    def fail_inside():
        with patch(model) as report:
            assert len(report.replaced) == 3
            assert_runs_ours(model, inputs, expected, monkeypatch)
            raise KeyError("from the block")

    with pytest.raises(KeyError):
        fail_inside()
    output, calls = stock_calls(model, inputs, monkeypatch)
    assert calls == 12
    assert torch.equal(output, expected)


def test_an_inner_block_leaves_what_was_patched_before(model):
    encoder = model.model.encoder
    with patch(encoder):
        with patch(model) as inner:
            assert [row.name for row in inner.replaced] == list(attentions(model))[1:]
        assert "forward" in vars(encoder.layers[0].self_attn)
        assert "forward" not in vars(model.get_submodule(ATTENTION))


def test_parts_and_the_whole_can_be_patched_and_unpatched_in_any_order(model):
    encoder = model.model.encoder
    patch(encoder)
    patch(model)
    unpatch(encoder)
    assert ["forward" in vars(module) for module in attentions(model).values()] == [False, True, True]
    assert [row.name for row in patch(model).replaced] == list(attentions(model))[:1]
    unpatch(model)
    assert not any("forward" in vars(module) for module in attentions(model).values())


def test_one_attention_in_two_places_is_replaced_once_and_recorded_at_each_call(model, inputs, monkeypatch):
    layers = model.model.decoder.layers
    layers[1].encoder_attn = layers[0].encoder_attn
    with torch.no_grad():
        wanted = run(copy.deepcopy(model), inputs).logits
    assert len(patch(model).replaced) == 2
    assert_runs_ours(model, inputs, wanted, monkeypatch)
    with record(model) as records, torch.no_grad():
        run(model, inputs)
    assert [entry.name for entry in records[1:]] == ["model.decoder.layers.0.encoder_attn"] * 2
    unpatch(model)
    assert "forward" not in vars(layers[0].encoder_attn)


def test_a_subclass_without_a_forward_of_its_own_is_replaced(model, inputs, expected, monkeypatch):
    attention = model.get_submodule(ATTENTION)
    attention.__class__ = type("FSDPAttention", (type(attention),), {})
    assert len(patch(model).replaced) == 3
    assert_runs_ours(model, inputs, expected, monkeypatch)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 1e-2)])
def test_a_patched_model_can_change_its_dtype(dtype, relative, model, inputs, expected):
    """In half precision the rest of the model rounds as well: the stock one is 1.3e-2 and 2.3e-3 off."""
    patch(model)
    model.to(dtype)
    with torch.no_grad():
        actual = run(model, inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}).logits
    assert actual.dtype == dtype
    assert (actual.float() - expected).norm() < relative * expected.norm()


def test_a_patched_model_runs_under_autocast(model, inputs, expected):
    patch(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        actual = run(model, inputs).logits
    assert (actual.float() - expected).norm() < 2e-2 * expected.norm()  # 1.3e-2 off as a stock model


def test_two_threads_can_run_one_patched_model_with_and_without_capturing(model, inputs, expected):
    patch(model)
    with torch.no_grad(), concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [False, True] * 4
        runs = list(pool.map(lambda answer: model(**copy.deepcopy(inputs), output_attentions=answer), asked))
    for outputs, answer in zip(runs, asked, strict=True):
        torch.testing.assert_close(outputs.logits, expected, rtol=1e-4, atol=1e-5)
        assert (outputs.cross_attentions is not None) == answer


def test_unpatch_leaves_an_unpatched_model_alone(model):
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    unpatch(model)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), lambda model: torch_save_and_load(model)],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_is_patched_with_its_own_parts(duplicate, model, inputs, expected, monkeypatch):
    patch(model)
    twin = duplicate(model)
    assert twin.get_submodule(ATTENTION).forward.args[0] is twin.get_submodule(ATTENTION)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_runs_ours(twin, inputs, expected, monkeypatch)
    unpatch(model)
    assert_runs_ours(twin, inputs, expected, monkeypatch)
    unpatch(twin)
    assert stock_calls(twin, inputs, monkeypatch)[1] == 12


def torch_save_and_load(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_shallow_copy_is_patched_anew(model):
    attention = model.get_submodule(ATTENTION)
    patch(attention)
    twin = copy.copy(attention)
    assert len(patch(twin).replaced) == 1
    assert twin.forward.args[0] is twin
    assert attention.forward.args[0] is attention


def test_from_pretrained_and_auto_model_give_models_that_can_be_patched(model, inputs, expected, monkeypatch, tmp_path):
    patch(model)
    model.save_pretrained(tmp_path)
    loaded = DeformableDetrForObjectDetection.from_pretrained(tmp_path)
    assert stock_calls(loaded, inputs, monkeypatch)[1] == 12
    patch(loaded)
    assert_runs_ours(loaded, inputs, expected, monkeypatch)
    assert len(patch(AutoModel.from_config(model.config)).replaced) == 3


@pytest.fixture
def call(model, inputs):
    """Return an attention of the model, the arguments of a call, and what the stock module returned."""
    attention = model.get_submodule(ATTENTION)
    calls = []
    hook = attention.register_forward_hook(lambda m, args, kwargs, out: calls.append((kwargs, out)), with_kwargs=True)
    with torch.no_grad():
        run(model, inputs)
    hook.remove()
    return attention, *calls[0]


def test_torch_compile_traces_a_patched_attention_without_a_break(call):
    attention, arguments, (output, weights) = call
    patch(attention)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    with torch.no_grad():
        actual, actual_weights = compiled(**arguments)
    torch.testing.assert_close(actual, output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual_weights, weights)


def test_what_was_compiled_before_follows_patch_and_unpatch(call, monkeypatch):
    attention, arguments, (output, _) = call
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(str(graph.code))
        return graph.forward

    compiled = torch.compile(attention, backend=backend)
    for change, name in ((None, "grid_sample"), (patch, "deform_attn"), (unpatch, "grid_sample")):
        if change is not None:
            change(compiled)
        graphs.clear()
        with torch.no_grad():
            torch.testing.assert_close(compiled(**arguments)[0], output, rtol=1e-4, atol=1e-5)
        if change is not unpatch:  # for which there may be a graph from before
            assert name in "".join(graphs)


def test_a_model_inside_ddp_is_patched_and_gets_its_gradients(model, inputs, tmp_path):
    twin = copy.deepcopy(model)
    run(twin, inputs).logits.square().sum().backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        assert len(patch(wrapped).replaced) == 3
        run(wrapped, inputs).logits.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for (name, actual), wanted in zip(model.named_parameters(), twin.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(actual.grad, wanted.grad, rtol=1e-3, atol=1e-3, msg=name)


def assert_checkpointing_gives_the_same_gradients(model, loss_of):
    """Compare the gradients of `loss_of(model)`, stock and patched, both under activation checkpointing."""
    gradients = []
    for prepare in (lambda stock: stock, patch):
        twin = copy.deepcopy(model).train()
        twin.gradient_checkpointing_enable()
        prepare(twin)
        loss_of(twin).backward()
        gradients.append({name: p.grad for name, p in twin.named_parameters() if p.grad is not None})
    expected, actual = gradients
    assert actual.keys() == expected.keys()
    error = torch.stack([(actual[name] - expected[name]).norm() for name in expected]).norm()
    assert error < 1e-5 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_activation_checkpointing_gives_the_same_gradients(model, inputs):
    assert_checkpointing_gives_the_same_gradients(model, lambda twin: run(twin, inputs).logits.square().sum())


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_attentions_can_be_captured_under_activation_checkpointing(model, inputs):
    """The second run, inside the backward pass, happens when the capture is over and nobody asks any more."""

    def loss_of(twin):
        outputs = run(twin, inputs, output_attentions=True)
        return outputs.logits.square().sum() + outputs.cross_attentions[0].square().sum()

    assert_checkpointing_gives_the_same_gradients(model, loss_of)


class Adapter(nn.Module):
    """A low-rank addition to a linear map, as PEFT puts it in its place."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("first", ["adapt", "patch"])
def test_adapters_in_place_of_the_projections_are_called(first, model, inputs, monkeypatch):
    def adapt():
        for attention in attentions(model).values():
            for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
                setattr(attention, name, Adapter(getattr(attention, name)))

    torch.manual_seed(0)
    if first == "patch":
        patch(model)
    adapt()
    unpatch(model)
    with torch.no_grad():
        wanted = run(model, inputs).logits
    patch(model)
    assert_runs_ours(model, inputs, wanted, monkeypatch)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning", "ignore:.*quantized tensor:UserWarning")
def test_quantised_projections_are_called(model, inputs, monkeypatch):
    model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        wanted = run(copy.deepcopy(model), inputs).logits
    patch(model)
    assert_runs_ours(model, inputs, wanted, monkeypatch)


def test_a_model_with_nothing_to_replace_is_refused_with_what_to_do_before_what_was_looked_for():
    known = r"\. Known classes: .*\bDeformableDetrMultiscaleDeformableAttention, .*\.$"
    advice = (
        r", got Linear without one\. If yours has another name, call deform_attn.deformable_attention in its forward"
    )
    with pytest.raises(ValueError, match=f"^model: expected a model with a deformable .* rule knows{advice}{known}"):
        patch(nn.Linear(2, 2))
    own = r"got DeformableAttention with \(the model itself\) .*: it is deform_attn's own and needs no patch\. Remove"
    with pytest.raises(ValueError, match=f"{own} .*do{known}"):
        patch(nn.Sequential(DeformableAttention(8, num_heads=2))[0])


def test_what_is_no_module_and_data_parallel_are_refused(model):
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module, got dict"):
        patch({})
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module, got str"):
        unpatch("model")
    with pytest.raises(ValueError, match=r"^model: expected .*, got DataParallel\. Use torch"):
        patch(nn.DataParallel(model))


def overriding(attention):
    def forward(self, *args, **kwargs):
        raise NotImplementedError

    attention.__class__ = type("Other", (type(attention),), {"forward": forward})


def test_what_stands_in_the_way_is_left_with_its_reason(model):
    changes = {
        "overrides the forward": overriding,
        "another tool has replaced": lambda attention: setattr(attention, "forward", partial(print)),
        "which would not be called": lambda attention: attention.attn.register_forward_hook(lambda *_: None),
        "it lacks n_heads": lambda attention: delattr(attention, "n_heads"),
    }
    for words, change in changes.items():
        twin = copy.deepcopy(model)
        change(twin.get_submodule(ATTENTION))
        report = patch(twin)
        assert len(report.replaced) == 2
        assert [row.name for row in report.left] == [ATTENTION]
        assert words in report.left[0].reason
        assert words in str(report).splitlines()[-1]
        with pytest.raises(ValueError, match=words):
            patch(twin.get_submodule(ATTENTION))


def other_op(attention):
    attention.attn = nn.Identity()


def overridden_op(attention):
    attention.attn.forward = partial(print)  # as kernelize does


@pytest.mark.parametrize("change", [other_op, overridden_op])
def test_an_op_inside_that_another_tool_has_replaced_is_left_to_it(change, model):
    change(model.get_submodule(ATTENTION))
    report = patch(model)
    assert [(row.name, row.reason) for row in report.left] == [
        (ATTENTION, "the op inside, attn, is not the MultiScaleDeformableAttention of transformers")
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: [*names, "sink"], "its forward takes sink, which that in transformers >= 5 does not"),
        (
            lambda names: [name for name in names if name != "level_start_index"],
            "its forward does not take level_start_index, as that",
        ),
        (lambda names: [names[0], names[2], names[1], *names[3:]], "takes its arguments in another order"),
    ],
    ids=["one more", "one less", "another order"],
)
def test_a_class_of_another_version_whose_forward_takes_other_arguments_is_left(change, words, model, monkeypatch):
    stock = type(model.get_submodule(ATTENTION))
    names = [name for name in inspect.signature(stock.forward).parameters if name not in ("self", "kwargs")]
    namespace = {}
    exec(f"def forward(self, {', '.join(f'{name}=None' for name in change(names))}, **kwargs): ...", namespace)
    monkeypatch.setattr(stock, "forward", namespace["forward"])
    with pytest.raises(ValueError, match=words):
        patch(model)


def test_what_accelerate_leaves_behind_does_not_stand_in_the_way(model):
    attention = model.get_submodule(ATTENTION)
    attention.forward = attention.forward  # set back by remove_hook_from_module
    assert patch(model).left == []


class MSDeformAttn(nn.Module):
    """One that no rule knows."""


def test_an_unknown_class_that_looks_like_one_is_left_and_named(model):
    model.extra = MSDeformAttn()
    report = patch(model)
    assert [(row.name, row.kind, row.rule, row.reason) for row in report.left] == [
        ("extra", "MSDeformAttn", None, "no rule knows this class")
    ]


class Particular(nn.Module):
    """A module that has an error of its own for what it lacks."""

    def __getattr__(self, name):
        parts = self.__dict__.get("_modules", {})
        if name in parts:
            return parts[name]
        raise KeyError(name)


def test_a_module_with_a_getattr_of_its_own_is_passed_by(model):
    particular = Particular()
    particular.model, particular.part = model, type("MSDeformAttn", (Particular,), {})()
    report = patch(particular)
    assert report.replaced
    assert [row.name for row in report.left] == ["part"]


class MSDeformAttnPixelDecoder(nn.Module):
    """A part of a model that is called after the attentions in it."""

    def __init__(self, model):
        super().__init__()
        self.model = model


def test_a_module_around_replaced_attentions_is_not_left(model):
    report = patch(MSDeformAttnPixelDecoder(model))
    assert report.replaced
    assert report.left == []


def test_unpatch_refuses_where_another_tool_has_covered_the_patch(model):
    patch(model)
    attention = model.get_submodule(ATTENTION)
    ours = attention.forward
    attention.forward = lambda **kwargs: ours(**kwargs)
    with pytest.raises(ValueError, match=r"^model: expected each forward that patch set, got another one"):
        unpatch(model)
    assert all("compute_sampling" in vars(module) for module in attentions(model).values())
    attention.forward = ours
    unpatch(model)
    assert all("forward" not in vars(module) for module in attentions(model).values())


def test_weights_are_not_computed_after_a_capture_has_ended(model, inputs, monkeypatch):
    patch(model)
    with torch.no_grad():
        assert run(model, inputs, output_attentions=True).cross_attentions is not None
        returned = []
        attention = model.get_submodule(ATTENTION)
        forward = attention.forward
        attention.forward = lambda **kwargs: returned.append(forward(**kwargs)) or returned[-1]
        assert bool(attention._forward_hooks) == CAPTURES_BY_HOOKS  # which stay
        run(model, inputs)
        run(model, inputs, output_attentions=True)
    assert [weights is None for _, weights in returned] == [True, False]


@pytest.mark.parametrize(
    "change",
    [
        lambda call: {"spatial_shapes_list": call["spatial_shapes"]},
        lambda call: {"spatial_shapes_list": list(call["spatial_shapes"])},
        lambda call: {"spatial_shapes_list": [list(shape) for shape in call["spatial_shapes_list"]]},
        lambda call: {"attention_mask": call["attention_mask"][1:].clone()},
        lambda call: {"reference_points": call["reference_points"][1:]},
        lambda call: {"position_embeddings": call["position_embeddings"][1:]},
        lambda call: {"reference_points": call["reference_points"][:, :, :1]},
        lambda call: {"attention_mask": torch.zeros_like(call["attention_mask"])},
        lambda call: {
            name: call[name][:0]
            for name in (
                "hidden_states",
                "encoder_hidden_states",
                "attention_mask",
                "reference_points",
                "position_embeddings",
            )
        },
    ],
    ids=[
        "sizes as a tensor",
        "sizes as tensors in a list",
        "sizes as lists",
        "one mask for all images",
        "references for all images",
        "positions for all images",
        "references for all levels",
        "nothing but padding",
        "no images",
    ],
)
def test_what_the_stock_module_takes_the_patched_one_takes(change, call):
    attention, arguments, _ = call
    arguments = arguments | change(arguments)
    with torch.no_grad():
        expected = attention(**arguments)[0]
        patch(attention)
        torch.testing.assert_close(attention(**arguments)[0], expected, rtol=1e-4, atol=1e-5)
        positional = [
            arguments[name] for name in inspect.signature(type(attention).forward).parameters if name in arguments
        ]
        torch.testing.assert_close(attention(*positional)[0], expected, rtol=1e-4, atol=1e-5)


def test_weights_that_are_asked_for_can_be_differentiated_by_torch_func(call):
    attention, arguments, _ = call
    arguments = {key: x.detach() if isinstance(x, torch.Tensor) else x for key, x in arguments.items()}

    def loss(parameters):
        output, weights = torch.func.functional_call(attention, parameters, (), arguments | {"output_attentions": True})
        return output.square().sum() + weights.square().sum()

    parameters = dict(attention.named_parameters())
    expected = torch.func.grad(loss)(parameters)
    patch(attention)
    torch.testing.assert_close(torch.func.grad(loss)(parameters), expected, rtol=1e-3, atol=1e-4)


def test_more_positional_arguments_than_there_are_names_for_are_refused(call):
    attention, *_ = call
    patch(attention)
    with pytest.raises(TypeError, match=r"^arguments: expected at most 10 by position, got 11\."):
        attention(*[None] * 11)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_patched_attention_can_be_exported_and_traced(call):
    attention, arguments, (expected, _) = call
    patch(attention)
    exported = torch.export.export(attention, (), arguments)
    assert "deform_attn.deformable_attention" in str(exported.graph)
    torch.testing.assert_close(exported.module()(**arguments)[0], expected, rtol=1e-4, atol=1e-5)
    parts = tuple(arguments[name] for name in ("hidden_states", "encoder_hidden_states", "reference_points"))
    rest = arguments | {"position_embeddings": arguments["position_embeddings"].detach()}

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, queries, features, references):
            call = rest | {
                "hidden_states": queries,
                "encoder_hidden_states": features,
                "reference_points": references,
            }
            return self.attention(**call)[0]

    with torch.no_grad():
        traced = torch.jit.trace(Wrapper(), parts)
        torch.testing.assert_close(traced(*parts), expected, rtol=1e-4, atol=1e-5)


def changed(model):
    """Return the names of the modules whose forward is set on the instance."""
    return {name for name, module in model.named_modules() if "forward" in vars(module)}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_the_parts_that_tell_attentions_what_was_asked_are_copied_and_restored(duplicate):
    model = interop_cases.build("grounding_dino")
    patch(model.model.encoder.layers[0])
    assert changed(model) == {"model.encoder.layers.0.deformable_layer.self_attn"}
    patch(model)
    expected = {"model.encoder", "model.decoder", *attentions(model)}
    assert changed(model) == expected
    with patch(model):  # nothing is left to do, nor to undo
        pass
    twin = duplicate(model)
    assert changed(twin) == changed(model) == expected
    assert twin.model.encoder.forward.args[0] is twin.model.encoder
    shallow = copy.copy(model.model.encoder)
    patch(shallow)
    assert shallow.forward.args[0] is shallow
    unpatch(model)
    assert changed(model) == set()
    unpatch(twin)
    assert changed(twin) == set()


def test_a_part_that_another_tool_has_changed_tells_nothing_and_weights_are_computed():
    model = interop_cases.build("grounding_dino")
    stock = model.model.encoder.forward
    model.model.encoder.forward = lambda *args, **kwargs: stock(*args, **kwargs)
    patch(model)
    returned = []
    layer = model.model.encoder.layers[0].deformable_layer
    attention_forward = layer.self_attn.forward
    layer.self_attn.forward = lambda **kwargs: returned.append(attention_forward(**kwargs)) or returned[-1]
    with torch.no_grad():
        run(model, CASES["grounding_dino"].inputs())
    assert returned[0][1] is not None


def test_a_record_finds_the_references_of_a_positional_call(model):
    attention = model.get_submodule(ATTENTION)
    patch(attention)
    references = torch.rand(1, 3, 4, 2)
    shapes = [(2, 3)] * 4
    arguments = torch.randn(1, 3, 32), None, torch.randn(1, 24, 32), None, None, references, None, shapes
    with record(attention) as records:
        attention(*arguments)
    assert torch.equal(records[0].reference_points, references)


def test_every_family_in_transformers_has_a_rule_and_a_case():
    models = Path(transformers.__file__).parent / "models"
    classes = {
        (path.parent.name, name)
        for path in models.glob("*/modeling_*.py")
        for name in re.findall(r"^class (\w+MultiscaleDeformableAttention)\(", path.read_text(), re.MULTILINE)
    }
    assert len(classes) >= (15 if Version(transformers.__version__) >= Version("5.23") else 10)
    newer = [rule for rule in RULES if not (models / rule.family).exists()]
    assert {(rule.family, rule.class_name) for rule in RULES if rule not in newer} == classes
    assert {name.split(",")[0] for name in CASES} == {family for family, _ in classes}


def test_a_sampling_method_or_scales_of_points_that_are_not_known_are_left_with_their_reason():
    model = interop_cases.build("d_fine")
    first, second = attentions(model).values()
    with torch.no_grad():
        first.num_points_scale[0] = 0.3
    second.decoder_method = "cubic"
    with pytest.raises(ValueError, match=r"not 1 / the points of their level; .* method is 'cubic', not one of"):
        patch(model)
    second.decoder_method = "default"
    second.ms_deformable_attn_core = lambda *args: None
    with pytest.raises(ValueError, match="its ms_deformable_attn_core is not multi_scale_deformable_attention_v2"):
        patch(model)


def test_a_model_in_bfloat16_or_on_the_meta_device_is_replaced():
    model = interop_cases.build("d_fine")
    assert len(patch(copy.deepcopy(model).bfloat16()).replaced) == 2
    assert len(patch(model.to("meta")).replaced) == 2
