"""Remembered calls in autocast: on, off and on again, nested, in another dtype, with float32 leaves."""

import itertools

import pytest
import torch
from warm_calls import ENTRY_POINTS, MODULES, check, kind_of, results

from deform_attn.backends import remembered
from tolerances import assert_close

ALL = pytest.mark.parametrize("form", ENTRY_POINTS + MODULES)
FORMS = pytest.mark.parametrize("form", ENTRY_POINTS)
HALVES = [torch.bfloat16, torch.float16]


def rounded(kind, dtype):
    """Return what the reference says of the call with its value in `dtype`, the rest as it is."""
    value, *others = kind.tensors
    return kind.on("reference")(value.to(dtype), *others)


def same(actual, expected):
    """Compare bit for bit, dtypes too, and see that there is something."""
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)
        assert (a != 0).any()


@FORMS
def test_autocast_on_and_off_in_any_order_gives_each_call_its_dtype(form, warm):
    kind = warm(kind_of(form, torch.float32))
    steps = [None, *HALVES]
    expected = {step: kind.on("reference")(*kind.tensors) if step is None else rounded(kind, step) for step in steps}
    for first, second in itertools.permutations(steps, 2):
        for step in (first, second, first, first, second):
            with torch.autocast("cpu", dtype=step, enabled=step is not None), torch.no_grad():
                output = kind()
            assert_close(output, expected[step].double(), step or torch.float32)


@FORMS
@pytest.mark.parametrize("first", ["in autocast", "outside"])
def test_what_is_warm_on_one_side_of_autocast_is_right_on_the_other(form, first, short):
    kind = kind_of(form, torch.float32)
    expected = {True: rounded(kind, torch.bfloat16), False: kind.on("reference")(*kind.tensors)}
    for inside in [first == "in autocast"] * 3 + [first != "in autocast"] * 3 + [first == "in autocast"]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside), torch.no_grad():
            output = kind()
        assert_close(output, expected[inside].double(), torch.bfloat16 if inside else torch.float32)
    assert len(short) > 0


@ALL
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_of_warm_calls_in_autocast_are_those_of_cold_ones_in_the_dtype_of_the_leaves(form, dtype, warm):
    kind = kind_of(form, torch.float32)

    def in_autocast():
        leaves = kind.leaves()
        with torch.autocast("cpu", dtype=dtype):
            output = kind(*leaves)
        return [output.detach(), *torch.autograd.grad(output.float().sin().sum(), leaves)]

    remembered._calls.clear()
    cold = in_autocast()
    warm(kind)
    for _ in range(3):
        found = in_autocast()
        same(found, cold)
        assert all(gradient.dtype == torch.float32 for gradient in found[1:])
        check(results(kind), results(kind, "reference"), torch.float32)
    assert found[0].dtype == dtype


@FORMS
def test_autocast_nests_around_warm_calls(form, warm):
    kind = warm(kind_of(form, torch.float32))
    full, half = kind.on("reference")(*kind.tensors), rounded(kind, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(kind(), half.double(), torch.bfloat16)
        with torch.autocast("cpu", enabled=False):
            for _ in range(2):
                assert_close(kind(), full.double(), torch.float32)
            with torch.autocast("cpu", dtype=torch.float16):
                assert_close(kind(), rounded(kind, torch.float16).double(), torch.float16)
        assert_close(kind(), half.double(), torch.bfloat16)
    assert_close(kind(), full.double(), torch.float32)


@FORMS
def test_the_dtype_of_autocast_may_change_between_warm_calls(form, warm):
    kind = warm(kind_of(form, torch.float32))
    before = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (*HALVES, *HALVES):
            torch.set_autocast_dtype("cpu", dtype)
            for _ in range(2):
                assert_close(kind(), rounded(kind, dtype).double(), dtype)
    assert torch.get_autocast_dtype("cpu") == before
    try:  # outside, the dtype is of no matter until autocast is enabled by hand
        torch.set_autocast_dtype("cpu", torch.float16)
        assert_close(kind(), kind.on("reference")(*kind.tensors).double(), torch.float32)
        torch.set_autocast_enabled("cpu", True)
        assert_close(kind(), rounded(kind, torch.float16).double(), torch.float16)
    finally:
        torch.set_autocast_enabled("cpu", False)
        torch.set_autocast_dtype("cpu", before)
    assert_close(kind(), kind.on("reference")(*kind.tensors).double(), torch.float32)


@FORMS
def test_autocast_of_another_device_changes_no_warm_call(form, warm):
    kind = warm(kind_of(form, torch.float32))
    expected = results(kind, "reference")
    torch.set_autocast_enabled("cuda", True)
    try:
        check([kind(), *results(kind)[1:]], expected, torch.float32)
    finally:
        torch.set_autocast_enabled("cuda", False)


@FORMS
def test_float64_stays_in_autocast(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(kind(), expected[0])
        check(results(kind), expected)


@FORMS
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_half_value_beside_the_same_call_in_float32_is_another_kind(form, dtype, warm):
    kind = warm(kind_of(form, torch.float32))
    value, *others = kind.tensors
    for _ in range(2):
        for given in (dtype, torch.float32, torch.float64, dtype):
            leaf = value.to(given).requires_grad_()
            output = kind(leaf, *others)
            assert_close(output, rounded(kind, given).double(), given)
            (gradient,) = torch.autograd.grad(output.float().sin().sum(), leaf)
            wanted = value.to(given).requires_grad_()
            (expected,) = torch.autograd.grad(kind.on("reference")(wanted, *others).float().sin().sum(), wanted)
            assert gradient.dtype == given
            assert (gradient != 0).any()
            assert_close(gradient, expected.double(), given)


@FORMS
def test_a_half_value_in_autocast_of_the_other_half_takes_its_dtype(form, warm):
    kind = warm(kind_of(form, torch.float32))
    value, *others = kind.tensors
    for own, given in (HALVES, HALVES[::-1]):
        for _ in range(3):
            kind(value.to(own), *others)
        with torch.autocast("cpu", dtype=given):
            for _ in range(2):
                output = kind(value.to(own), *others)
                assert_close(output, kind.on("reference")(value.to(own).to(given), *others).double(), given)


@FORMS
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_transforms_in_autocast_of_warm_calls_are_those_of_cold_ones(form, transform, warm):
    kind = kind_of(form, torch.float32)

    def derived():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if transform == "grad":
                places = tuple(range(len(kind.tensors)))
                return torch.func.grad(lambda *tensors: kind(*tensors).float().sin().sum(), places)(*kind.tensors)
            if transform == "jvp":
                return torch.func.jvp(kind.function, tuple(kind.tensors), tuple(x.cos() for x in kind.tensors))
            return [torch.func.vmap(kind.function)(*[torch.stack([tensor, tensor * 0.9]) for tensor in kind.tensors])]

    remembered._calls.clear()
    cold = derived()
    warm(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kind()
    same(list(derived()), list(cold))
