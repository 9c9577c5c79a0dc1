"""Remembered calls under tracers: a graph holds the registered op, never its twin without derivatives."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from warm_calls import ENTRY_POINTS, MODULES, bent, check, kind_of, results, targets

from deform_attn import use_backend

ALL = pytest.mark.parametrize("form", ENTRY_POINTS + MODULES)
FORMS = pytest.mark.parametrize("form", ENTRY_POINTS)


class Function(torch.nn.Module):
    """A function as a module, which alone torch.export takes."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def op_of(kind):
    return f"deform_attn.{kind.op}.default"


@pytest.mark.parametrize("pre_dispatch", [False, True])
@pytest.mark.parametrize(
    ("form", "tracing"),
    [(form, "real") for form in ENTRY_POINTS + MODULES]
    + [(form, tracing) for form in ENTRY_POINTS for tracing in ("fake", "symbolic")],  # parameters are not fake
)
def test_make_fx_of_a_warm_call_records_the_op(form, tracing, pre_dispatch, warm):
    kind = warm(kind_of(form, masked=False))
    graph = make_fx(kind.function, tracing_mode=tracing, pre_dispatch=pre_dispatch)(*kind.tensors)
    assert targets(graph) == [op_of(kind)]
    others = [tensor * 0.9 for tensor in kind.tensors]
    check(graph(*others), kind.on("reference")(*others))
    check(kind(*others), kind.on("reference")(*others))


@FORMS
def test_make_fx_of_the_gradient_of_a_warm_call_records_the_op_and_its_gradient(form, warm):
    kind = warm(kind_of(form))

    def gradient(*tensors):
        return torch.func.grad(bent(kind.function), tuple(range(len(tensors))))(*tensors)

    graph = make_fx(gradient)(*kind.tensors)
    assert op_of(kind) in targets(graph)
    assert not any("judged" in target for target in targets(graph))
    check(list(graph(*kind.tensors)), results(kind, "reference")[1:])


@pytest.mark.parametrize("form", [*ENTRY_POINTS, "multi"])
@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_of_a_warm_call_records_the_op(form, strict, warm):
    kind = warm(kind_of(form))
    with torch.no_grad():
        program = torch.export.export(Function(kind.function), tuple(kind.tensors), strict=strict)
    assert targets(program.graph_module) == [op_of(kind)]
    others = [tensor * 0.9 for tensor in kind.tensors]
    check(program.module()(*others), kind.on("reference")(*others))
    check(kind(*others), kind.on("reference")(*others))


@pytest.mark.parametrize("form", [*ENTRY_POINTS, pytest.param("multi", marks=pytest.mark.slow)])
@pytest.mark.parametrize("first", ["eager", "compiled"])
def test_eager_and_compiled_calls_of_a_kind_are_equal_in_either_order(form, first, short, warm):
    torch._dynamo.reset()
    kind = kind_of(form)
    expected = results(kind, "reference")
    seen = []

    def note(graph, _):
        seen.extend(targets(graph))
        return make_boxed_func(graph.forward)

    compiled = torch.compile(kind.function, backend=aot_autograd(fw_compiler=note), fullgraph=True)
    for turn in [("eager", "compiled", "eager"), ("compiled", "eager", "compiled")][first == "compiled"]:
        if turn == "eager":
            warm(kind)
        check(results(kind, function=compiled if turn == "compiled" else None), expected)
    assert op_of(kind) in seen
    assert not any("judged" in target for target in seen)
    with torch.no_grad():
        check(compiled(*kind.tensors), expected[0])
    torch._dynamo.reset()


@FORMS
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:DeprecationWarning")
def test_torch_jit_trace_of_a_warm_call_gives_what_it_gives_cold(form, warm):
    kind = kind_of(form)
    others = [tensor * 0.9 for tensor in kind.tensors]
    found = []
    for state in ("cold", "warm"):
        if state == "warm":
            warm(kind)
        with torch.no_grad():
            found.append(torch.jit.trace(Function(kind.function), tuple(kind.tensors))(*others))
    assert torch.equal(*found)
    check(found[0], kind.on("reference")(*others))
    check(kind(), kind.on("reference")(*kind.tensors))


@FORMS
def test_symbolic_proxies_in_place_of_the_tensors_of_a_warm_call_are_refused(form, warm):
    kind = warm(kind_of(form))

    class Traced(torch.nn.Module):
        def forward(self, value):
            return kind.function(value, *kind.tensors[1:])

    with pytest.raises(TypeError, match=r"^value: expected a tensor, got .*Proxy"):
        torch.fx.symbolic_trace(Traced())


@FORMS
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by torch, where it resumes
def test_a_warm_call_that_breaks_the_graph_runs_in_eager_and_is_right(form, warm):
    torch._dynamo.reset()
    kind = warm(kind_of(form))
    apart = torch.compiler.disable(kind.function)

    def function(*tensors):
        return apart(*[tensor * 1.5 for tensor in tensors]) * 2

    actual = results(kind, function=torch.compile(function, backend="eager"))
    with use_backend("reference"):
        check(actual, results(kind, function=function))
    torch._dynamo.reset()
