"""Remembered calls under torch.func and in forward mode: the same numbers as of the reference, never zeros."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from warm_calls import ENTRY_POINTS, MODULES, bent, check, kind_of, results

from deform_attn import use_backend
from tolerances import assert_close

ALL = pytest.mark.parametrize("form", ENTRY_POINTS + MODULES)
FORMS = pytest.mark.parametrize("form", ENTRY_POINTS)


def all_of(tensors):
    return tuple(range(len(tensors)))


def tangents_of(tensors):
    return tuple(tensor.cos() for tensor in tensors)


TRANSFORMS = {
    "grad": lambda f, t: grad(bent(f), all_of(t))(*t),
    "grad of value": lambda f, t: grad(bent(f))(*t),
    "grad of the last": lambda f, t: grad(bent(f), len(t) - 1)(*t),
    "vjp": lambda f, t: (lambda output, pull: [output, pull(output.cos())])(*vjp(f, *t)),
    "jvp": lambda f, t: jvp(f, tuple(t), tangents_of(t)),
    "jacrev": lambda f, t: jacrev(f, all_of(t))(*t),
    "jacfwd": lambda f, t: jacfwd(f, all_of(t))(*t),
    "hessian": lambda f, t: hessian(bent(f), 0)(*t),
    "grad of grad": lambda f, t: grad(lambda *x: grad(bent(f))(*x).sin().sum(), all_of(t))(*t),
    "functionalize": lambda f, t: functionalize(f)(*t),
    "grad of functionalize": lambda f, t: grad(functionalize(bent(f)), all_of(t))(*t),
    "autograd.functional.jvp": lambda f, t: torch.autograd.functional.jvp(f, tuple(t), tangents_of(t)),
    "autograd.functional.vhp": lambda f, t: torch.autograd.functional.vhp(bent(f), tuple(t), tangents_of(t)),
}


@ALL
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_of_a_warm_call_is_that_of_the_reference(form, transform, warm):
    kind = warm(kind_of(form))
    derive = TRANSFORMS[transform]
    expected = derive(kind.on("reference"), kind.tensors)
    for _ in range(2):  # after it, the kind is as warm as before
        check(derive(kind.function, kind.tensors), expected)
        warm(kind)


@FORMS
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # by torch itself
def test_a_warm_call_is_linearized_as_the_reference_is(form, warm):
    kind = warm(kind_of(form))
    output, push = linearize(kind.function, *kind.tensors)
    expected = jvp(kind.on("reference"), tuple(kind.tensors), tangents_of(kind.tensors))
    check([output, push(*tangents_of(kind.tensors))], list(expected))


@FORMS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_and_jvp_inside_a_grad_mode_are_those_outside(form, mode, warm):
    with mode():
        if torch.func.grad(torch.sin)(torch.ones(())) == 0:
            pytest.skip("this torch (2.10 is one) itself differentiates nothing in inference mode")
    kind = warm(kind_of(form))
    for name in ("grad", "jvp", "vjp"):
        expected = TRANSFORMS[name](kind.on("reference"), kind.tensors)
        with mode():
            actual = TRANSFORMS[name](kind.function, kind.tensors)
        check(actual, expected)


@FORMS
def test_no_grad_inside_grad_takes_only_its_own_call_out(form, warm):
    kind = warm(kind_of(form))

    def loss(function):
        def both(*tensors):
            with torch.no_grad():
                weight = function(*tensors)
            return (weight * function(*tensors)).sin().sum()

        return both

    check(grad(loss(kind.function))(*kind.tensors), grad(loss(kind.on("reference")))(*kind.tensors))


@FORMS
def test_a_call_with_outer_tensors_inside_a_transform_has_their_gradient(form, warm):
    kind = warm(kind_of(form))

    def gradients(function):
        leaves = kind.leaves()
        # What is mapped or derived is a factor; the call itself has tensors of outside alone.
        inner = grad(lambda factor: (factor * function(*leaves)).sin().sum())(torch.tensor(0.7, dtype=torch.float64))
        rows = vmap(lambda factor: (factor * function(*leaves)).sin().sum())(torch.ones(2, dtype=torch.float64))
        return torch.autograd.grad(inner + rows.sum(), leaves)

    check(gradients(kind.function), gradients(kind.on("reference")))


@FORMS
def test_vmap_of_a_warm_call_is_the_loop_over_it(form, warm):
    kind = warm(kind_of(form))
    stacks = [torch.stack([tensor * factor for factor in (1.0, 0.9, 1.2)]) for tensor in kind.tensors]
    for mapped in [all_of(stacks), (0,), all_of(stacks)[1:]]:
        axes = tuple(0 if i in mapped else None for i in all_of(stacks))
        batched = [stacks[i] if i in mapped else kind.tensors[i] for i in all_of(stacks)]
        rows = [[b[j] if i in mapped else b for i, b in enumerate(batched)] for j in range(3)]
        check(vmap(kind.function, axes)(*batched), torch.stack([kind.on("reference")(*row) for row in rows]))
        expected = [grad(bent(kind.on("reference")), all_of(row))(*row) for row in rows]
        actual = vmap(grad(bent(kind.function), all_of(stacks)), axes)(*batched)
        check(actual, [torch.stack(each) for each in zip(*expected, strict=True)])


@FORMS
def test_vmap_of_a_warm_call_whose_tensors_are_all_shared_repeats_it(form, warm):
    kind = warm(kind_of(form))
    actual = vmap(lambda factor: factor * kind(), 0)(torch.tensor([1.0, 2.0], dtype=torch.float64))
    output = kind.on("reference")(*kind.tensors)
    check(actual, torch.stack([output, 2 * output]))


@FORMS
def test_rows_of_the_shape_of_a_warm_call_under_vmap_are_not_taken_for_it(form, warm):
    # The rows have the remembered shapes; then the whole stack is such a call, with a batch of its own.
    kind = warm(kind_of(form))
    stacks = [torch.cat([tensor, -tensor]) for tensor in kind.tensors]
    whole = kind_of(form)
    rows = vmap(kind.function)(*[stack[:, None] for stack in stacks])
    if form == "classic":  # the other one has a mask, for one sample
        check(rows[:, 0], whole(*stacks))
    check(rows, torch.stack([kind.on("reference")(*[stack[i : i + 1] for stack in stacks]) for i in range(2)]))


@pytest.mark.parametrize("others_mapped", [False, True])
def test_vmap_over_the_mask_of_a_warm_call_is_the_loop_over_it(others_mapped, warm):
    kind = warm(kind_of("fused"))
    masks = torch.stack([kind.mask, ~kind.mask, torch.zeros_like(kind.mask)])

    def function(mask, *tensors):
        return kind.function(*(tensors or kind.tensors), padding_mask=mask)

    tensors = [tensor.expand(3, *tensor.shape) for tensor in kind.tensors] if others_mapped else []
    with use_backend("reference"):
        expected = torch.stack([function(mask) for mask in masks])
    check(vmap(function)(masks, *tensors), expected)
    assert not torch.equal(expected[0], expected[1])


@ALL
def test_a_dual_call_has_the_tangent_of_the_reference(form, warm):
    kind = warm(kind_of(form))
    with fwAD.dual_level():
        for which in all_of(kind.tensors):
            actual, expected = [
                fwAD.unpack_dual(
                    function(*[fwAD.make_dual(t, t.cos()) if i == which else t for i, t in enumerate(kind.tensors)])
                )
                for function in (kind.function, kind.on("reference"))
            ]
            assert expected.tangent is not None
            assert actual.tangent is not None
            check(list(actual), list(expected))


@ALL
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_in_a_dual_level_a_call_without_duals_has_no_tangent_and_the_same_gradients(form, mode, warm):
    kind = warm(kind_of(form))
    expected = results(kind, "reference")
    with fwAD.dual_level():
        with mode():
            primal, tangent = fwAD.unpack_dual(kind())
        check(primal, expected[0])
        assert tangent is None
        check(results(kind), expected)
    check(results(kind), expected)


@FORMS
def test_a_dual_call_under_no_grad_keeps_its_tangent(form, warm):
    kind = warm(kind_of(form))
    tangents = []
    for function in (kind.function, kind.on("reference")):
        with fwAD.dual_level(), torch.no_grad():
            tangents.append(fwAD.unpack_dual(function(*map(fwAD.make_dual, kind.tensors, kind.tensors))).tangent)
    assert tangents[0] is not None
    check(*tangents)


@FORMS
def test_forward_over_reverse_of_a_warm_call_is_that_of_the_reference(form, warm):
    kind = warm(kind_of(form))

    def second(function):
        leaves = kind.leaves()
        with fwAD.dual_level():
            duals = [fwAD.make_dual(leaf, leaf.detach().cos()) for leaf in leaves]
            gradients = torch.autograd.grad(bent(function)(*duals), leaves, create_graph=True)
            return [fwAD.unpack_dual(gradient).tangent.detach() for gradient in gradients]

    check(second(kind.function), second(kind.on("reference")))


@pytest.mark.parametrize("form", MODULES)
def test_functional_call_of_a_warm_module_has_the_gradients_of_the_parameters_it_is_given(form, warm):
    kind = warm(kind_of(form))
    parameters = {name: p.detach() * 1.1 for name, p in kind.function.named_parameters()}

    def loss(parameters):
        return functional_call(kind.function, parameters, tuple(kind.tensors)).sin().sum()

    actual = grad(loss)(parameters)
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    by_autograd = torch.autograd.grad(loss(leaves), list(leaves.values()))
    with use_backend("reference"):
        expected = grad(loss)(parameters)
    check([actual[name] for name in leaves], [expected[name] for name in leaves])
    check(list(by_autograd), [expected[name] for name in leaves])
    assert_close(kind(), kind.on("reference")(*kind.tensors), torch.float64)
