"""Calls whose first of a kind is under a transform, a mode or a tracer: what it leaves behind is right outside."""

import contextlib

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import allow_mutation_on_saved_tensors, save_on_cpu
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode
from warm_calls import ENTRY_POINTS, MODULES, Ops, bent, check, kind_of, results

from deform_attn.backends import remembered

ALL = pytest.mark.parametrize("form", ENTRY_POINTS + MODULES)


def dual(kind):
    with fwAD.dual_level():
        kind(*[fwAD.make_dual(tensor, tensor) for tensor in kind.tensors])


def inside(context):
    def first(kind):
        with context():
            kind()

    return first


FIRST = {
    "grad": lambda kind: torch.func.grad(bent(kind.function))(*kind.tensors),
    "vmap": lambda kind: torch.func.vmap(kind.function)(*[tensor[None] for tensor in kind.tensors]),
    "jvp": lambda kind: torch.func.jvp(kind.function, tuple(kind.tensors), tuple(kind.tensors)),
    "functionalize": lambda kind: torch.func.functionalize(kind.function)(*kind.tensors),
    "dual numbers": dual,
    "a dual level": inside(fwAD.dual_level),
    "make_fx": lambda kind: make_fx(kind.function)(*kind.tensors),
    "a dispatch mode": inside(Ops),
    "a fake mode": inside(lambda: FakeTensorMode(allow_non_fake_inputs=True)),
    "a FLOP counter": inside(lambda: FlopCounterMode(display=False)),
    "a device": inside(lambda: torch.device("meta")),
    "autocast": inside(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "inference mode": inside(torch.inference_mode),
    "saving on the CPU": inside(save_on_cpu),
    "mutation of what is saved": inside(allow_mutation_on_saved_tensors),
    "the profiler": inside(torch.profiler.profile),
    "meta tensors": lambda kind: kind.function(*[tensor.to("meta") for tensor in kind.tensors]),
}
NEXT = {
    "grad": lambda kind, function: torch.func.grad(bent(function), tuple(range(len(kind.tensors))))(*kind.tensors),
    "jvp": lambda kind, function: torch.func.jvp(function, tuple(kind.tensors), tuple(kind.tensors)),
    "vmap": lambda kind, function: torch.func.vmap(function)(*[tensor[None] for tensor in kind.tensors]),
}


@ALL
@pytest.mark.parametrize("first", FIRST)
def test_a_kind_first_called_under_something_is_right_outside_and_under_transforms(form, first, cold, warm):
    kind = kind_of(form, masked=False)
    expected = results(kind, "reference")
    remembered._calls.clear()
    refused = contextlib.nullcontext()
    if form in MODULES and first == "meta tensors":
        refused = pytest.raises(ValueError, match=r"expected .*meta")  # the module is on the CPU
    for _ in range(2):
        with refused:
            FIRST[first](kind)
    with torch.no_grad():
        check(kind(), expected[0])
    check(results(kind), expected)
    warm(kind)
    check(results(kind), expected)
    for derive in NEXT.values():
        check(derive(kind, kind.function), derive(kind, kind.on("reference")))


@pytest.mark.parametrize("form", ENTRY_POINTS)
@pytest.mark.parametrize("context", [save_on_cpu, allow_mutation_on_saved_tensors])
def test_what_a_warm_call_saves_under_the_contexts_of_autograd_is_right(form, context, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    with context():
        check(results(kind), expected)
        leaves = kind.leaves()
        inner = [leaf * 1 for leaf in leaves]
        output = kind(*inner)
        if context is allow_mutation_on_saved_tensors:
            with torch.no_grad():
                inner[0].mul_(2)
        check(list(torch.autograd.grad(output.sin().sum(), leaves)), expected[1:])
