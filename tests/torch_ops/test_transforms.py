"""torch.func: grad, vjp, jacrev, jacfwd, hessian, jvp and vmap over both entry points, against the reference."""

import itertools

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

import cases
from cases import inputs_of, named
from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    deformable_attention,
    explain,
    multi_scale_deformable_attention,
)
from tolerances import assert_close

FORMS = pytest.mark.parametrize("form", ["fused", "classic"])


def function_of(form, case, backend, **modes):
    """Return an entry point as a function of its tensors alone, and those tensors."""
    inputs = inputs_of(case, torch.float64)
    entry_point = deformable_attention if form == "fused" else multi_scale_deformable_attention
    tensors = inputs.fused_tensors if form == "fused" else inputs.classic_tensors
    options = inputs.fused_options if form == "fused" else inputs.classic_options

    def function(value, *others):
        return entry_point(value, inputs.spatial_shapes, *others, **options, **modes, backend=backend)

    return function, tensors


def bent(function):
    """Return a number from the output in which second and third derivatives do not vanish."""
    return lambda *tensors: function(*tensors).sin().sum()


def check(actual, expected):
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected) > 0
    assert any((tensor != 0).any() for tensor in expected)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, torch.float64)


def all_of(tensors):
    return tuple(range(len(tensors)))


DERIVATIVES = {
    "grad": lambda f, t: grad(bent(f), all_of(t))(*t),
    "vjp": lambda f, t: (lambda output, pull: pull(output.cos()))(*vjp(f, *t)),
    "jacrev": lambda f, t: jacrev(f, all_of(t))(*t),
    "jacfwd": lambda f, t: jacfwd(f, all_of(t))(*t),
    "jvp": lambda f, t: jvp(f, tuple(t), tuple(x.cos() for x in t)),
    "hessian": lambda f, t: hessian(bent(f), all_of(t))(*t),
    "jacrev of grad": lambda f, t: jacrev(grad(bent(f), all_of(t)), all_of(t))(*t),
    "jacrev of jacfwd": lambda f, t: jacrev(jacfwd(bent(f), all_of(t)), all_of(t))(*t),
    "jacfwd of jacfwd": lambda f, t: jacfwd(jacfwd(bent(f), all_of(t)), all_of(t))(*t),
    "third": lambda f, t: third(f, t),
}


def third(function, tensors):
    def total(gradients):
        return sum(gradient.sin().sum() for gradient in gradients)

    def once(*tensors):
        return total(grad(bent(function), all_of(tensors))(*tensors))

    def twice(*tensors):
        return total(grad(once, all_of(tensors))(*tensors))

    return grad(twice, all_of(tensors))(*tensors)


@FORMS
@pytest.mark.parametrize(("case", "interpolation", "padding_mode"), cases.DERIVATIVES)
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_a_derivative_of_any_order_and_mode_is_that_of_the_reference(
    form, case, interpolation, padding_mode, derivative
):
    options = {"interpolation": interpolation, "padding_mode": padding_mode}
    function, tensors = function_of(form, named(case), "native", **options)
    expected_function, _ = function_of(form, named(case), "reference", **options)
    derive = DERIVATIVES[derivative]
    check(derive(function, tensors), derive(expected_function, tensors))


@FORMS
@pytest.mark.parametrize("name", ["small points", "small boxes"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_vmap_over_any_of_the_tensors_is_the_loop_over_them(form, name, backend):
    function, tensors = function_of(form, named(name), backend)
    factors = torch.tensor([1.0, 0.9, 1.2], dtype=torch.float64)
    for mapped in itertools.product([False, True], repeat=len(tensors)):
        if not any(mapped):
            continue
        axes = [(i + 1) % tensor.ndim if m else None for i, (tensor, m) in enumerate(zip(tensors, mapped, strict=True))]
        rows = [[t * factor if m else t for t, m in zip(tensors, mapped, strict=True)] for factor in factors]
        batched = [
            tensors[i] if axis is None else torch.stack([row[i] for row in rows], axis) for i, axis in enumerate(axes)
        ]
        expected = torch.stack([function(*row) for row in rows], 1)
        assert_close(vmap(function, tuple(axes), 1)(*batched), expected, torch.float64)
        gradients = vmap(grad(bent(function), all_of(tensors)), tuple(axes))(*batched)
        expected = [
            torch.stack(g) for g in zip(*[grad(bent(function), all_of(tensors))(*r) for r in rows], strict=True)
        ]
        check(gradients, expected)


@FORMS
def test_vmap_nests(form):
    function, tensors = function_of(form, named("small points"), "native")
    value = torch.stack([torch.stack([tensors[0] * (1 + i + 10 * j) for i in range(2)]) for j in range(3)])
    points = torch.stack([tensors[1] * (1 - i / 10) for i in range(2)])
    rest = tensors[2:]
    nested = vmap(vmap(function, (0, 0, *[None] * len(rest))), (0, None, *[None] * len(rest)))
    expected = torch.stack([torch.stack([function(value[j, i], points[i], *rest) for i in range(2)]) for j in range(3)])
    assert_close(nested(value, points, *rest), expected, torch.float64)


def test_vmap_maps_a_mask_with_and_without_its_value():
    inputs = inputs_of(named("small points"), torch.float64)
    masks = torch.stack([inputs.padding_mask, ~inputs.padding_mask])

    def function(value, mask):
        return deformable_attention(value, inputs.spatial_shapes, *inputs.fused_tensors[1:], padding_mask=mask)

    expected = torch.stack([function(inputs.value, mask) for mask in masks])
    assert_close(vmap(function, (None, 0))(inputs.value, masks), expected, torch.float64)
    assert_close(vmap(function)(torch.stack([inputs.value] * 2), masks), expected, torch.float64)
    two = torch.stack([inputs.value, 2 * inputs.value])
    expected = torch.stack([function(value, masks[0]) for value in two])
    assert_close(vmap(function, (0, None))(two, masks[0]), expected, torch.float64)


@FORMS
def test_under_vmap_and_grad_the_compiled_kernels_run_forward_and_backward(form):
    function, tensors = function_of(form, named("small points"), None)
    with torch.profiler.profile() as profile:
        vmap(grad(bent(function)))(*[torch.stack([tensor] * 2) for tensor in tensors])
    ran = {event.key for event in profile.key_averages()}
    assert {"deform_attn::multi_scale_deformable_attention_backward"} & ran
    assert not {"aten::index", "aten::index_put"} & ran  # how the reference reads pixels


@FORMS
def test_under_transforms_the_native_backend_is_chosen(form):
    function, tensors = function_of(form, named("small points"), None)
    chosen = []
    inputs = inputs_of(named("small points"), torch.float64)

    def note(*tensors):
        chosen.append(explain(tensors[0], inputs.spatial_shapes, *tensors[1:]).backend)
        return function(*tensors).sum()

    grad(note)(*tensors)
    jvp(note, tuple(tensors), tuple(tensors))
    vmap(note)(*[tensor[None] for tensor in tensors])
    assert chosen == ["native"] * 3


@pytest.mark.parametrize("kind", [DeformableAttention, MultiScaleDeformableAttention])
def test_the_gradients_of_each_sample_of_a_batch_are_those_of_the_sample_alone(kind):
    torch.manual_seed(0)
    single = kind is DeformableAttention
    module = kind(6, num_heads=2, num_points=2, **{} if single else {"num_levels": 1}).double()
    parameters = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    query, points, features = (torch.randn(3, 5, 6), torch.rand(3, 5, 2), torch.randn(3, 6, 4, 7))
    batch = [tensor.double() for tensor in (query, points, features)]

    def loss(parameters, query, points, features):
        features = features[None] if single else [features[None]]
        return functional_call(module, parameters, (query[None], points[None], features)).sin().sum()

    actual = vmap(grad(loss), (None, 0, 0, 0))(parameters, *batch)
    for i in range(3):
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        loss(leaves, *[tensor[i] for tensor in batch]).backward()
        check([actual[name][i] for name in leaves], [leaf.grad for leaf in leaves.values()])
