"""The two functions of the stand-in, as autograd functions of other projects call them."""

import pytest
import torch
from callers import SHAPES, Filling, Original, call, draw, extension, sizes_and_starts
from torch.utils.checkpoint import checkpoint

from deform_attn import multi_scale_deformable_attention, use_backend
from tolerances import assert_close

CALLERS = [Original, Filling]
DTYPES = [  # of value, of locations and weights
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
]


def wide(tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def expected_of(tensors, grad_output, shapes=SHAPES):
    """Return output and gradients of the maths in float64, by autograd."""
    value, locations, weights = leaves = wide(tensors)
    output = multi_scale_deformable_attention(value, shapes, locations, weights, backend="reference")
    return output, torch.autograd.grad(output, leaves, grad_output.double())


def grad_like(output, seed=1):
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output.dtype)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_output_and_both_forms_of_gradients_are_those_of_the_maths(caller, dtypes):
    tensors = draw(*dtypes)
    output = call(caller, tensors)
    grad_output = grad_like(output)
    expected, expected_grads = expected_of(tensors, grad_output)
    assert_close(output, expected, dtypes[0])
    grads = torch.autograd.grad(output, tensors, grad_output)
    for grad, wanted, tensor in zip(grads, expected_grads, tensors, strict=True):
        assert grad.shape == tensor.shape
        assert wanted.abs().max() > 0.1
        assert_close(grad, wanted, tensor.dtype)


@pytest.mark.parametrize("D", [30, 32, 64, 71, 1025])
def test_the_gradients_are_those_of_differences(D):
    for caller in CALLERS if D == 30 else [Original]:
        value, locations, weights = draw(D=D, N=1)
        locations = (locations[:, :2] * 0.9).detach().requires_grad_()
        inputs = value, *sizes_and_starts(), locations, weights[:, :2].detach().requires_grad_(), 2
        assert torch.autograd.gradcheck(caller.apply, inputs, fast_mode=D > 71)


def test_the_step_is_of_no_matter_nor_is_the_width_of_the_sizes():
    tensors = draw(N=3)
    expected = call(Original, tensors)
    for caller in CALLERS:
        for step, dtype in ((2, torch.int64), (128, torch.int32), (None, torch.int32)):
            actual = call(caller, tensors, step=step, dtype=dtype)
            assert torch.equal(actual, expected), (caller, step, dtype)
            for one, other in zip(
                torch.autograd.grad(actual.sin().sum(), tensors),
                torch.autograd.grad(expected.sin().sum(), tensors, retain_graph=True),
                strict=True,
            ):
                assert torch.equal(one, other), (caller, step, dtype)


def test_all_arguments_may_be_named():
    value, locations, weights = (tensor.detach() for tensor in draw())
    sizes, starts = sizes_and_starts()
    named = {"value": value, "spatial_shapes": sizes, "level_start_index": starts}
    named |= {"sampling_loc": locations, "attn_weight": weights}
    output = extension.ms_deform_attn_forward(**named, im2col_step=64)
    assert torch.equal(output, extension.ms_deform_attn_forward(value, sizes, starts, locations, weights, 64))
    named["grad_output"] = grad_like(output)
    returned = extension.ms_deform_attn_backward(*named.values(), 64)
    assert all(map(torch.equal, extension.ms_deform_attn_backward(**named, im2col_step=64), returned))
    for by_name in (False, True):
        filled = [torch.full_like(tensor, float("nan")) for tensor in (value, locations, weights)]
        names = "grad_value", "grad_sampling_loc", "grad_attn_weight"
        if by_name:
            result = extension.ms_deform_attn_backward(**named, **dict(zip(names, filled, strict=True)), im2col_step=64)
        else:
            result = extension.ms_deform_attn_backward(*named.values(), *filled, 64)
        assert result is None
        assert all(map(torch.equal, filled, returned)), by_name


def test_the_gradients_themselves_need_none():
    tensors = draw()
    assert all(tensor.requires_grad for tensor in tensors)
    grad_output = grad_like(call(Original, tensors))
    value, locations, weights = tensors
    grads = extension.ms_deform_attn_backward(value, *sizes_and_starts(), locations, weights, grad_output, 64)
    assert not any(grad.requires_grad for grad in grads)


def test_a_part_of_the_gradients_to_fill_is_refused():
    value, locations, weights = (tensor.detach() for tensor in draw())
    given = value, *sizes_and_starts(), locations, weights, torch.zeros(2, 7, 8, dtype=torch.float64)
    for wrong in ((value, locations), (value, None, weights, 64), (3, locations, weights, 64), (3, 4, 5, 64)):
        with pytest.raises(TypeError, match="ms_deform_attn_backward: expected grad_value, grad_sampling_loc and"):
            extension.ms_deform_attn_backward(*given, *wrong)


@pytest.mark.parametrize("name", ["grad_value", "grad_sampling_loc", "grad_attn_weight"])
def test_a_tensor_to_fill_of_another_shape_is_refused_by_name_and_none_is_filled(name):
    value, locations, weights = (tensor.detach() for tensor in draw())
    given = value, *sizes_and_starts(), locations, weights, torch.ones(2, 7, 8, dtype=torch.float64)
    to_fill = {"grad_value": value, "grad_sampling_loc": locations, "grad_attn_weight": weights}
    to_fill = {key: torch.zeros_like(tensor) for key, tensor in to_fill.items()}
    to_fill[name] = to_fill[name].new_zeros(3, *to_fill[name].shape)  # over which the gradient could be spread
    with pytest.raises(ValueError, match=rf"^{name}: expected \[2, .*, got \[3, 2, "):
        extension.ms_deform_attn_backward(*given, **to_fill, im2col_step=64)
    assert not any(tensor.any() for tensor in to_fill.values())
    to_fill[name] = to_fill[name][0].float()
    with pytest.raises(TypeError, match=rf"^{name}: expected a tensor of dtype float64, got .*float32"):
        extension.ms_deform_attn_backward(*given, **to_fill, im2col_step=64)
    assert not any(tensor.any() for tensor in to_fill.values())


def test_a_gradient_of_the_output_that_is_missing_is_refused_by_name():
    value, locations, weights = (tensor.detach() for tensor in draw())
    with pytest.raises(TypeError, match=r"^grad_output: expected a tensor, got NoneType"):
        extension.ms_deform_attn_backward(value, *sizes_and_starts(), locations, weights, None, 64)


@pytest.mark.parametrize("starts", [[1, 25], [0, 23], [24, 0], [0], [0.0, 24.0], [[0, 24]], 0])
def test_levels_with_gaps_are_refused_by_name(starts):
    value, locations, weights = (tensor.detach() for tensor in draw())
    sizes, grad_output = torch.tensor(SHAPES), torch.zeros(2, 7, 8, dtype=torch.float64)
    wrong = torch.tensor(starts)
    with pytest.raises(ValueError, match=r"^level_start_index: expected levels without gaps, \[0, 24\], got"):
        extension.ms_deform_attn_forward(value, sizes, wrong, locations, weights, 64)
    with pytest.raises(ValueError, match=r"^level_start_index: expected levels without gaps, \[0, 24\], got"):
        extension.ms_deform_attn_backward(value, sizes, wrong, locations, weights, grad_output, 64)


def test_wrong_sizes_and_a_start_that_is_no_tensor_are_refused_by_name():
    value, locations, weights = (tensor.detach() for tensor in draw())
    with pytest.raises(ValueError, match=r"^spatial_shapes: expected sizes"):
        extension.ms_deform_attn_forward(value, *sizes_and_starts([(6, 4), (3, 6)]), locations, weights, 64)
    with pytest.raises(TypeError, match=r"^level_start_index: expected a tensor"):
        extension.ms_deform_attn_forward(value, torch.tensor(SHAPES), [0, 24], locations, weights, 64)


def test_on_another_device_nothing_is_read():
    value, locations, weights = (tensor.detach().to("meta") for tensor in draw())
    sizes, starts = (tensor.to("meta") for tensor in sizes_and_starts())
    output = extension.ms_deform_attn_forward(value, sizes, starts, locations, weights, 64)
    assert (output.device.type, output.shape) == ("meta", (2, 7, 8))


@pytest.mark.parametrize("caller", CALLERS)
def test_under_autocast_value_keeps_its_dtype(caller):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = draw(dtype, torch.float32)
        expected = call(caller, tensors)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = call(caller, tensors)
            loss = output.float().sin().sum()
        assert output.dtype == dtype
        assert torch.equal(output, expected)
        for one, other in zip(
            torch.autograd.grad(loss, tensors),
            torch.autograd.grad(expected.float().sin().sum(), tensors),
            strict=True,
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("caller", CALLERS)
def test_a_checkpoint_has_the_gradients_of_a_plain_call(caller):
    tensors = draw()
    for reentrant in (True, False):
        output = checkpoint(lambda *tensors: call(caller, tensors), *tensors, use_reentrant=reentrant)
        grad_output = grad_like(output)
        output.backward(grad_output)
        for tensor, expected in zip(tensors, expected_of(tensors, grad_output)[1], strict=True):
            assert_close(tensor.grad, expected, torch.float64)
            tensor.grad = None


@pytest.mark.parametrize("name", ["reference", "grid_sample"])
def test_a_backend_without_kernels_that_is_asked_for_has_the_same_gradients(name):
    tensors = draw()
    for caller in CALLERS:
        with use_backend(name):
            output = call(caller, tensors)
            grad_output = grad_like(output)
            grads = torch.autograd.grad(output, tensors, grad_output)
        for grad, expected in zip(grads, expected_of(tensors, grad_output)[1], strict=True):
            assert_close(grad, expected, torch.float64)


def test_a_gradient_that_is_spread_from_one_number_is_read_right():
    tensors = draw()
    output = call(Original, tensors)
    grads = torch.autograd.grad(output.sum(), tensors)  # its gradient is expanded, with strides of 0
    for grad, expected in zip(grads, expected_of(tensors, torch.ones_like(output))[1], strict=True):
        assert_close(grad, expected, torch.float64)
