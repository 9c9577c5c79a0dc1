"""Autograd beyond a plain backward pass: second derivatives, forward mode, checkpoints, hooks and refusals."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cases import DERIVATIVES, SMALL_CASES, case_id, inputs_of, named
from deform_attn import deformable_attention, multi_scale_deformable_attention
from every_backend import BACKENDS, call_on

FORMS = pytest.mark.parametrize("form", ["fused", "classic"])
TINY = {"small points": "tiny points", "small boxes": "tiny boxes"}  # finite differences are many
SMALL = pytest.mark.parametrize("case", SMALL_CASES, ids=case_id)


def function_of(form, case, backend=None, **modes):
    """Return an entry point as a function of its tensors alone, and those, requiring gradients, in float64."""
    inputs = inputs_of(case, torch.float64)
    entry_point = deformable_attention if form == "fused" else multi_scale_deformable_attention
    tensors = inputs.fused_tensors if form == "fused" else inputs.classic_tensors
    options = {**(inputs.fused_options if form == "fused" else inputs.classic_options), **modes}

    def function(value, *others):
        tensors = (value, inputs.spatial_shapes, *others)
        if backend is None:
            return entry_point(*tensors, **options)
        output = call_on(backend, entry_point, *tensors, **options)
        if output is None:
            pytest.skip(f"{backend} refused this call, as it declares")
        return output

    return function, [tensor.clone().requires_grad_() for tensor in tensors]


def gradients(form, case, wrap=lambda function: function, **options):
    """Return the gradients of a number made of the output, of a function that `wrap` may change."""
    function, tensors = function_of(form, case, **options)
    return torch.autograd.grad(wrap(function)(*tensors).sin().sum(), tensors)


def check_equal(actual, expected):
    assert len(actual) == len(expected)
    assert any((tensor != 0).any() for tensor in expected)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


# Those of the reference are checked in test_functional.py. On the small cases themselves, derivatives of every order
# and mode are compared with those of the reference in test_transforms.py.
@FORMS
@pytest.mark.parametrize(
    ("backend", "case", "interpolation", "padding_mode"),
    [("native", *each) for each in DERIVATIVES]
    + [("grid_sample", *each) for each in (*DERIVATIVES[:2], DERIVATIVES[3])],
)
def test_gradgradcheck_passes_for_every_backend(form, backend, case, interpolation, padding_mode):
    modes = {"interpolation": interpolation, "padding_mode": padding_mode}
    function, tensors = function_of(form, named(TINY.get(case, case)), backend, **modes)
    if backend == "grid_sample" and not has_second_derivatives(F.grid_sample):
        with pytest.raises(RuntimeError, match="grid_sampler_2d_backward is not implemented"):
            gradgradcheck(function, tensors)
        return
    assert gradgradcheck(function, tensors, raise_exception=True)


def has_second_derivatives(grid_sample):
    """Return whether this torch differentiates grid_sample twice, which 2.10 does not."""
    maps, grid = torch.ones(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 1, 1, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(grid_sample(maps, grid, align_corners=False).sum(), grid, create_graph=True)
    try:
        slope.sum().backward()
    except RuntimeError:
        return False
    return True


@FORMS
@pytest.mark.parametrize(("case", "interpolation", "padding_mode"), DERIVATIVES)
def test_forward_mode_and_batched_gradients_pass_gradcheck(form, case, interpolation, padding_mode):
    modes = {"interpolation": interpolation, "padding_mode": padding_mode}
    function, tensors = function_of(form, named(TINY.get(case, case)), "native", **modes)
    checks = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, tensors, **checks)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_batched_grad=True)


@FORMS
@SMALL
def test_a_tangent_in_forward_mode_has_a_gradient_of_its_own(form, case):
    function, tensors = function_of(form, case, "native")
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(tensor, tensor.detach().cos()) for tensor in tensors]
        tangent = forward_ad.unpack_dual(function(*duals)).tangent
    grads = torch.autograd.grad(tangent.sin().sum(), tensors)

    expected_function, _ = function_of(form, case, "reference")
    tensors = tuple(tensor.detach() for tensor in tensors)
    moves = tuple(tensor.cos() for tensor in tensors)

    def tangent_of(*tensors):
        return torch.func.jvp(expected_function, tensors, moves)[1].sin().sum()

    expected_grads = torch.func.grad(tangent_of, tuple(range(len(tensors))))(*tensors)
    for actual, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@FORMS
def test_tensors_without_a_tangent_inside_a_forward_level_get_none(form):
    function, tensors = function_of(form, named("small points"), "native")
    with forward_ad.dual_level():
        output = function(*[tensor.detach() for tensor in tensors])
        assert forward_ad.unpack_dual(output).tangent is None
        assert torch.equal(output, function(*tensors))


@FORMS
def test_a_gradient_that_nobody_wants_is_not_computed(form):
    case = named("small points")
    _, tensors = function_of(form, case)
    for index in range(len(tensors)):
        function, tensors = function_of(form, case)
        with torch.profiler.profile(record_shapes=True) as profile:
            alone = [tensor.detach().requires_grad_(i == index) for i, tensor in enumerate(tensors)]
            function(*alone).sum().backward()
        assert [tensor.grad is not None for tensor in alone] == [i == index for i in range(len(tensors))]
        names = [event.name for event in profile.events() if event.name.startswith("deform_attn::")]
        assert sum(name.endswith("_backward") for name in names) == 1
        wanted = [i == index for i in range(len(tensors))]
        grads = backward_op(form, case, tensors, wanted)
        assert [grad.numel() > 0 for grad in grads] == wanted


def backward_op(form, case, tensors, wanted):
    inputs = inputs_of(case, torch.float64)
    flat = [size for shape in case.spatial_shapes for size in shape]
    N, Q, M, T = inputs.attention_logits.shape
    grad_output = torch.ones(N, Q, M * case.channels, dtype=torch.float64)
    options = list(case.num_points), "bilinear", "zeros", wanted
    tensors = [tensor.detach() for tensor in tensors]
    if form == "classic":
        value, locations, weights = tensors
        args = value, flat, locations.reshape(N, Q, M, T, 2), weights.reshape(N, Q, M, T)
        return torch.ops.deform_attn.multi_scale_deformable_attention_backward(grad_output, *args, *options)
    value, references, offsets, logits = tensors
    args = value, flat, references, offsets.reshape(N, Q, M, T, 2), logits, inputs.padding_mask, case.offset_scale
    return torch.ops.deform_attn.deformable_attention_backward(grad_output, *args, *options)


@FORMS
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_call_has_the_same_gradients(form, backend, use_reentrant):
    case = named("small points")
    expected = gradients(form, case, backend=backend)
    function, tensors = function_of(form, case, backend)
    checkpoint(function, *tensors, use_reentrant=use_reentrant).sin().sum().backward()
    check_equal([tensor.grad for tensor in tensors], expected)


@FORMS
def test_saved_tensors_go_through_hooks(form):
    case = named("small points")
    expected = gradients(form, case)
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.clone()

    function, tensors = function_of(form, case)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(*tensors)
    assert tensors[0].shape in packed
    check_equal(torch.autograd.grad(output.sin().sum(), tensors), expected)
    function, tensors = function_of(form, case)
    with save_on_cpu():
        output = function(*tensors)
    check_equal(torch.autograd.grad(output.sin().sum(), tensors), expected)


@FORMS
def test_a_saved_input_that_was_written_into_is_an_error(form):
    for index in range(3):
        function, tensors = function_of(form, named("small points"))
        copies = [tensor * 1 for tensor in tensors]
        output = function(*copies)
        with torch.no_grad():
            copies[index].add_(1)
        with pytest.raises(RuntimeError, match="inplace"):
            torch.autograd.grad(output.sum(), tensors)


@FORMS
def test_inference_mode_gives_the_numbers_and_records_nothing(form):
    function, tensors = function_of(form, named("small points"))
    expected = function(*tensors)
    for _ in range(2):
        with torch.inference_mode():
            output = function(*tensors)
        assert output.is_inference()
        assert not output.requires_grad
        assert torch.equal(output, expected)
    with torch.inference_mode():
        made_there = [tensor * 1 for tensor in tensors]
        assert torch.equal(function(*made_there), expected)
    assert torch.equal(function(*made_there), expected)


@FORMS
def test_a_loss_that_ignores_the_output_passes_no_gradient(form):
    function, tensors = function_of(form, named("small points"))
    output = function(*tensors)
    loss = tensors[0].sum() + torch.zeros_like(output).sum()
    grads = torch.autograd.grad(loss, tensors, allow_unused=True)
    assert [grad is None for grad in grads] == [False] + [True] * (len(tensors) - 1)


@FORMS
def test_jacobians_of_torch_autograd_are_vectorised(form):
    function, tensors = function_of(form, named("small points"))
    tensors = tuple(tensor.detach() for tensor in tensors)
    loop = torch.autograd.functional.jacobian(function, tensors)
    for strategy in ("reverse-mode", "forward-mode"):
        fast = torch.autograd.functional.jacobian(function, tensors, vectorize=True, strategy=strategy)
        for actual, expected in zip(fast, loop, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [{"D": 0}, {"Q": 0}, {"N": 0}], ids=str)
def test_a_second_derivative_of_what_holds_nothing_is_zero(sizes):
    N, Q, M, D, T = (sizes.get(letter, size) for letter, size in zip("NQMDT", (1, 3, 2, 4, 2), strict=True))
    tensors = torch.rand(N, 6, M, D), torch.rand(N, Q, M, 1, T, 2), torch.rand(N, Q, M, 1, T)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    output = multi_scale_deformable_attention(leaves[0], [(2, 3)], *leaves[1:])
    grads = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
    for second in torch.autograd.grad(sum(grad.sin().sum() for grad in grads), leaves):
        assert not second.any()
