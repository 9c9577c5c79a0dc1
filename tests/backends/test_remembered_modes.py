"""Remembered calls under modes, counters and the profiler: these see the registered op."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from warm_calls import ENTRY_POINTS, MODULES, Ops, bent, check, kind_of, results

ALL = pytest.mark.parametrize("form", ENTRY_POINTS + MODULES)
FORMS = pytest.mark.parametrize("form", ENTRY_POINTS)


def op_of(kind):
    return f"deform_attn.{kind.op}.default"


@ALL
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_fake_tensors_of_a_warm_kind_give_fake_outputs_and_gradients(form, inside, requires_grad, warm):
    kind = warm(kind_of(form, masked=False))
    expected = results(kind, "reference")
    mode = FakeTensorMode(allow_non_fake_inputs=form in MODULES)  # whose parameters are real
    fakes = [mode.from_tensor(tensor).requires_grad_(requires_grad) for tensor in kind.tensors]
    with mode if inside or form in MODULES else contextlib.nullcontext():
        found = [kind(*fakes)]
        assert found[0].requires_grad == requires_grad
        if requires_grad:
            found += torch.autograd.grad(found[0].sum(), fakes)
    for fake, real in zip(found, expected[: len(found)], strict=True):
        assert type(fake).__name__ == "FakeTensor"
        assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)
    check(kind(), expected[0])


@FORMS
def test_real_tensors_of_a_warm_kind_under_a_fake_mode_give_a_fake_output(form, warm):
    kind = warm(kind_of(form))
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = kind()
    assert type(output).__name__ == "FakeTensor"
    assert type(kind()) is torch.Tensor


@FORMS
def test_real_tensors_of_a_warm_kind_under_a_fake_mode_that_takes_none_are_refused(form, warm):
    kind = warm(kind_of(form))
    with FakeTensorMode(), pytest.raises(AssertionError, match="convert all Tensors to FakeTensors"):
        kind()


@ALL
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_dispatch_mode_sees_the_op_of_a_warm_call(form, requires_grad, warm):
    kind = warm(kind_of(form))
    with Ops() as ops:
        actual = results(kind) if requires_grad else [kind()]
    assert ops.seen[0] == op_of(kind)
    assert [name.split(".")[1].endswith("_backward") for name in ops.seen] == [False, True][: 1 + requires_grad]
    assert not any("judged" in name for name in ops.seen)
    check(actual, results(kind, "reference")[: len(actual)])


@ALL
def test_a_dispatch_mode_may_give_another_output(form, warm):
    kind = warm(kind_of(form))

    class Doubled(Ops):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = super().__torch_dispatch__(func, types, args, kwargs)
            return 2 * output if str(func) == op_of(kind) else output

    with Doubled():
        output = kind.function(*kind.tensors)
    if form in ENTRY_POINTS:
        check(output, 2 * kind.on("reference")(*kind.tensors))
    with torch.no_grad():
        check(kind(), kind.on("reference")(*kind.tensors))


@ALL
def test_a_function_mode_sees_the_op_of_a_warm_call(form, warm):
    class Seen(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    kind = warm(kind_of(form))
    with Seen() as seen:
        output = kind()
    ours = [name for name in seen.names if "deform_attn" in name]
    assert op_of(kind) in ours
    assert not any("judged" in name for name in ours)
    check(output, kind.on("reference")(*kind.tensors))


@ALL
@pytest.mark.parametrize("default", [False, True])
def test_a_device_for_new_tensors_changes_no_warm_call(form, default, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    if default:
        torch.set_default_device("meta")
        try:
            actual = [kind(), *results(kind)[1:]]
        finally:
            torch.set_default_device(None)
    else:
        with torch.device("meta"):
            actual = [kind(), *results(kind)[1:]]
    check(actual, expected)


@FORMS
def test_a_meta_tensor_of_the_shapes_of_a_warm_call_is_not_read(form, warm):
    kind = warm(kind_of(form, masked=False))
    output = kind(*[tensor.to("meta") for tensor in kind.tensors])
    assert (output.device.type, output.shape) == ("meta", kind().shape)
    with pytest.raises(ValueError, match=r"expected .*(device|meta|cpu)"):
        kind(kind.tensors[0].to("meta"), *kind.tensors[1:])
    check(kind(), kind.on("reference")(*kind.tensors))


@ALL
def test_the_flop_counter_counts_warm_calls_as_cold_ones(form, cold, warm):
    kind = kind_of(form)

    def counted():
        with FlopCounterMode(display=False) as counter:
            bent(kind.function)(*kind.leaves()).backward()
        return {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}

    first = counted()
    warm(kind)
    assert counted() == first
    assert first[f"deform_attn.{kind.op}"] > 0


@ALL
def test_the_profiler_names_the_ops_of_warm_calls_as_it_does_those_of_cold_ones(form, cold, warm):
    kind = kind_of(form)

    def counts():
        with torch.profiler.profile() as profile:
            with torch.no_grad():
                kind()
            results(kind)
        return {event.key: event.count for event in profile.key_averages() if event.key.startswith("deform_attn::")}

    first = counts()
    warm(kind)
    assert counts() == first
    assert first[f"deform_attn::{kind.op}"] >= 2
    assert any(name.endswith("_backward") for name in first)


@FORMS
def test_the_first_shape_in_a_profile_of_a_warm_call_is_that_of_value(form, warm):
    kind = warm(kind_of(form))
    with torch.profiler.profile(record_shapes=True) as profile, torch.no_grad():
        kind()
    (event,) = [event for event in profile.events() if event.name == f"deform_attn::{kind.op}"]
    assert event.input_shapes[0] == list(kind.tensors[0].shape)
