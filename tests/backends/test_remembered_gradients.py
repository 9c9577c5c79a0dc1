"""Remembered calls and autograd: grad modes, which gradients are wanted, hooks, checkpoints."""

import itertools

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from warm_calls import ENTRY_POINTS, MODULES, check, kind_of, results

ALL = pytest.mark.parametrize("form", ENTRY_POINTS + MODULES)
FORMS = pytest.mark.parametrize("form", ENTRY_POINTS)


@ALL
def test_each_choice_of_gradients_of_a_warm_call_gives_those_of_the_reference(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    choices = list(itertools.product([False, True], repeat=len(kind.tensors)))
    for wanted in choices + choices[::-1]:  # the same kind, whatever requires grad
        tensors = [tensor.clone().requires_grad_(want) for tensor, want in zip(kind.tensors, wanted, strict=True)]
        output = kind(*tensors)
        assert output.requires_grad == any(wanted)
        check(output.detach(), expected[0])
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        if leaves:
            gradients = torch.autograd.grad(output.sin().sum(), leaves)
            check(list(gradients), [g for g, want in zip(expected[1:], wanted, strict=True) if want])


@FORMS
def test_a_gradient_of_a_warm_call_asked_for_alone_is_that_of_the_reference(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")[1:]
    for i, e in enumerate(expected):
        leaves = kind.leaves()
        check(torch.autograd.grad(kind(*leaves).sin().sum(), leaves[i])[0], e)


@ALL
def test_grad_modes_nest_around_warm_calls(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    leaves = kind.leaves()
    with torch.no_grad():
        assert not kind(*leaves).requires_grad
        with torch.enable_grad():
            output = kind(*leaves)
            with torch.no_grad(), torch.set_grad_enabled(False):
                assert not kind(*leaves).requires_grad
        assert not kind(*leaves).requires_grad
    check(list(torch.autograd.grad(output.sin().sum(), leaves)), expected[1:])
    assert kind(*leaves).requires_grad
    check(results(kind), expected)


@ALL
def test_what_inference_mode_remembers_has_gradients_outside_of_it(form, short):
    kind = kind_of(form)
    with torch.inference_mode():
        for _ in range(2):
            output = kind()
    assert len(short) == 1
    assert output.is_inference()
    check(results(kind), results(kind, "reference"))


@ALL
def test_tensors_made_in_inference_mode_are_read_outside_and_not_saved_for_backward(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    with torch.inference_mode():
        inside = [tensor.clone() for tensor in kind.tensors]
        assert kind(*inside).is_inference()
    output = kind(*inside)
    assert not output.is_inference()
    check(output, expected[0])
    other = kind.tensors[1].clone().requires_grad_()
    if form in ENTRY_POINTS:
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            kind(inside[0], other, *inside[2:])
    leaves = kind.leaves()
    check(list(torch.autograd.grad(kind(*leaves).sin().sum(), leaves)), expected[1:])
    with torch.inference_mode():
        assert not kind(*leaves).requires_grad


@ALL
def test_saved_tensors_of_a_warm_call_pass_through_the_hooks(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.detach().clone()

    def unpack(tensor):
        unpacked.append(tensor.shape)
        return tensor

    leaves = kind.leaves()
    with saved_tensors_hooks(pack, unpack):
        output = kind(*leaves)
    count = len(packed)
    assert count >= len(leaves) if form in ENTRY_POINTS else count > 0
    check([output.detach(), *torch.autograd.grad(output.sin().sum(), leaves)], expected)
    assert len(unpacked) == count
    with saved_tensors_hooks(pack, unpack):
        kind()
    assert len(packed) == count  # nothing requires grad, nothing is saved


@FORMS
def test_a_tensor_that_a_warm_call_saved_must_not_be_written_into(form, warm):
    kind = warm(kind_of(form))
    leaves = kind.leaves()
    inner = [leaf * 1 for leaf in leaves]
    output = kind(*inner)
    with torch.no_grad():
        inner[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@ALL
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("before", ["cold", "warm"])
def test_a_checkpoint_has_its_gradients_whether_the_call_is_the_first_or_not(form, use_reentrant, before, request):
    kind = kind_of(form)
    if before == "warm":
        request.getfixturevalue("warm")(kind)
    else:
        request.getfixturevalue("cold")

    def function(*tensors):
        return checkpoint(kind.function, *tensors, use_reentrant=use_reentrant)

    leaves = kind.leaves()
    output = function(*leaves)
    output.sin().sum().backward()  # autograd.grad does not go with reentrant checkpoints
    check([output.detach(), *[leaf.grad for leaf in leaves]], results(kind, "reference"))


@FORMS
def test_hooks_on_tensors_of_warm_calls_run(form, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    leaves, seen = kind.leaves(), []
    inner = [leaf * 1 for leaf in leaves]
    for tensor in inner:
        tensor.register_hook(lambda gradient: gradient * 2)
    leaves[0].register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad.clone()))
    output = kind(*inner)
    output.register_hook(lambda gradient: seen.append(gradient) or gradient * 3)
    assert output.grad_fn is not None
    output.sin().sum().backward()
    check([leaf.grad for leaf in leaves], [6 * gradient for gradient in expected[1:]])
    check(seen, [expected[0].cos(), 6 * expected[1]])


@ALL
def test_double_backward_of_a_warm_call_is_that_of_the_reference(form, warm):
    kind = warm(kind_of(form))

    def second(function):
        leaves = kind.leaves()
        first = torch.autograd.grad(function(*leaves).sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(gradient.sin().sum() for gradient in first), leaves)

    check(list(second(kind.function)), list(second(kind.on("reference"))))
    check(results(kind), results(kind, "reference"))


@FORMS
def test_a_graph_of_a_warm_call_is_used_twice_and_freed(form, warm):
    kind = warm(kind_of(form))
    leaves = kind.leaves()
    loss = kind(*leaves).sin().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    check(list(torch.autograd.grad(loss, leaves)), list(first))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


@FORMS
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_anomaly_mode_sees_the_backward_of_a_warm_call(form, warm):
    kind = warm(kind_of(form))
    with torch.autograd.detect_anomaly():
        check(results(kind), results(kind, "reference"))
        leaves = kind.leaves()
        loss = kind(*leaves).sum() * torch.nan
        with (
            pytest.warns(UserWarning, match="Error detected in"),
            pytest.raises(RuntimeError, match="returned nan values"),
        ):
            torch.autograd.grad(loss, leaves)
