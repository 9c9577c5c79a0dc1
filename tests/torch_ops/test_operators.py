"""The registered operators: torch's own checks, autocast, FLOPs, modes, profiler, and devices without kernels."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cases import CASES, SMALL_CASES, case_id, grad_output_of, inputs_of, named
from deform_attn import checks, deformable_attention, explain, multi_scale_deformable_attention
from deform_attn.torch_ops import schema
from tolerances import assert_close

OPS = torch.ops.deform_attn
ENTRY_POINTS = {"fused": deformable_attention, "classic": multi_scale_deformable_attention}
FORMS = pytest.mark.parametrize("form", ["fused", "classic"])


def op_and_arguments(form, case, dtype, modes=("bilinear", "zeros"), requires_grad=True):
    """Return an op and what it takes for a case."""
    inputs = inputs_of(case, dtype)
    num_points = list(case.num_points)
    N, Q, M, T = inputs.attention_logits.shape

    def fresh(tensor, *shape):
        return tensor.clone().reshape(shape or tensor.shape).requires_grad_(requires_grad)

    shapes = schema.flat(case.spatial_shapes)
    if form == "classic":
        points = fresh(inputs.sampling_locations, N, Q, M, T, 2), fresh(inputs.attention_weights, N, Q, M, T)
        return OPS.multi_scale_deformable_attention.default, [fresh(inputs.value), shapes, *points, num_points, *modes]
    references = inputs.reference_points
    references = references if references.ndim == 4 else references[:, :, None]
    points = fresh(references), fresh(inputs.sampling_offsets, N, Q, M, T, 2), fresh(inputs.attention_logits)
    rest = inputs.padding_mask, case.offset_scale, num_points, *modes
    return OPS.deformable_attention.default, [fresh(inputs.value), shapes, *points, *rest]


@FORMS
@pytest.mark.parametrize("case", SMALL_CASES, ids=case_id)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # read by the check itself
def test_the_ops_pass_all_checks_of_torch_library(form, case):
    plain = (SMALL_CASES.index(case) + (form == "fused")) % 2  # each form and each case with both
    op, args = op_and_arguments(form, case, torch.float32, ("bilinear", "zeros") if plain else ("nearest", "border"))
    assert set(torch.library.opcheck(op, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("fused", "some"),
        ("classic", "all"),
        pytest.param("fused", "all", marks=pytest.mark.slow),
        pytest.param("classic", "some", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # read by the check itself
def test_the_backward_ops_pass_all_checks_of_torch_library(form, wanted):
    case = named("small boxes")
    op, args = op_and_arguments(form, case, torch.float64)
    backward = getattr(OPS, f"{op._opname}_backward").default
    count = sum(isinstance(arg, torch.Tensor) and arg.is_floating_point() for arg in args)
    wants = [wanted == "all" or i % 2 == 0 for i in range(count)]
    grad_output = grad_output_of(case, torch.float64).requires_grad_()
    result = torch.library.opcheck(backward, [grad_output, *args, wants])
    assert set(result.values()) == {"SUCCESS"}


def test_the_check_of_torch_library_sees_an_op_whose_shapes_are_wrong():
    with torch.library._scoped_library("deform_attn_test", "DEF") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: 2 * x, "CPU")
        torch.library.register_fake("deform_attn_test::double", lambda x: x.new_empty(x.numel()), lib=library)
        with pytest.raises(torch.testing._internal.optests.generate_tests.OpCheckError):
            torch.library.opcheck(torch.ops.deform_attn_test.double.default, [torch.ones(2, 3)])


@FORMS
def test_no_gradient_is_lost_where_the_op_is_called_by_its_name(form):
    case = named("small points")
    op, args = op_and_arguments(form, case, torch.float64)
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad]
    grads = torch.autograd.grad(op(*args), tensors, grad_output_of(case, torch.float64))
    for grad, tensor in zip(grads, tensors, strict=True):
        assert grad.shape == tensor.shape
        assert (grad != 0).any()


def call(form, dtype, case_name="decoder points", requires_grad=False, **changes):
    """Call an entry point with a case's tensors, some changed, and return the output and the tensors."""
    inputs = inputs_of(named(case_name), dtype)
    tensors = inputs.fused_tensors if form == "fused" else inputs.classic_tensors
    tensors = [changes["change"](tensor) if "change" in changes else tensor for tensor in tensors]
    if requires_grad:
        tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = ENTRY_POINTS[form](tensors[0], inputs.spatial_shapes, *tensors[1:], **changes.get("options", {}))
    return output, tensors


@FORMS
@pytest.mark.parametrize("backend", [None, "native", "grid_sample", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_rounds_the_value_and_leaves_the_coordinates(form, backend, dtype):
    inputs = inputs_of(named("decoder points"), torch.float32)
    tensors = inputs.fused_tensors if form == "fused" else inputs.classic_tensors
    value = tensors[0].clone().requires_grad_()
    expected = ENTRY_POINTS[form](value.detach().to(dtype), inputs.spatial_shapes, *tensors[1:], backend="reference")
    with torch.autocast("cpu", dtype=dtype):
        output = ENTRY_POINTS[form](value, inputs.spatial_shapes, *tensors[1:], backend=backend)
    assert_close(output, expected.double(), dtype)
    output.sum().backward()
    assert value.grad.dtype == torch.float32


@FORMS
def test_autocast_rounds_the_value_of_an_op_called_by_its_name_and_no_float64(form):
    case = named("decoder points")
    op, args = op_and_arguments(form, case, torch.float32)
    expected = op(args[0].bfloat16(), *args[1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(op(*args), expected)
        assert call(form, torch.float64)[0].dtype == torch.float64


@FORMS
@pytest.mark.parametrize(("interpolation", "corners"), [("bilinear", 4), ("nearest", 1)])
def test_the_flop_counter_counts_a_multiplication_and_an_addition_for_each_pixel_read(form, interpolation, corners):
    # N = 2, Q = 11, M = 3, D = 5, T = 6
    forward = 2 * corners * 2 * 11 * 3 * 5 * 6
    with FlopCounterMode(display=False) as counter:
        output, tensors = call(form, torch.float32, requires_grad=True, options={"interpolation": interpolation})
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(output.sum(), tensors[0], retain_graph=True)
    assert counter.get_total_flops() == 2 * forward  # all tensors asked for gradients in the forward pass
    output, tensors = call(form, torch.float32, options={"interpolation": interpolation})
    value = tensors[0].clone().requires_grad_()
    output, _ = call(form, torch.float32, change=lambda t: value if t is tensors[0] else t)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * 4 * 2 * 11 * 3 * 5 * 6


class Seen(TorchDispatchMode):
    """Notes which ops torch dispatches."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@FORMS
def test_a_dispatch_mode_sees_the_op_and_its_backward_however_often_it_was_called_before(form):
    name = "deform_attn::" + ENTRY_POINTS[form].__name__
    for _ in range(2):
        call(form, torch.float32)
        with Seen() as seen:
            output, _ = call(form, torch.float32, requires_grad=True)
            output.sum().backward()
        assert name in seen.names
        assert f"{name}_backward" in seen.names


@FORMS
def test_a_backward_pass_inside_a_mode_is_seen_though_the_forward_pass_was_not(form):
    call(form, torch.float32)
    output, tensors = call(form, torch.float32, requires_grad=True)
    expected = torch.autograd.grad(output.sum(), tensors, retain_graph=True)
    with Seen() as seen:
        actual = torch.autograd.grad(output.sum(), tensors)
    assert f"deform_attn::{ENTRY_POINTS[form].__name__}_backward" in seen.names
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@FORMS
def test_the_profiler_records_the_op_by_its_name(form):
    call(form, torch.float32)
    with torch.profiler.profile() as profile:
        call(form, torch.float32)
    assert f"deform_attn::{ENTRY_POINTS[form].__name__}" in {event.key for event in profile.key_averages()}


@FORMS
def test_fake_tensors_give_shape_and_dtype_without_numbers(form):
    call(form, torch.bfloat16)
    with FakeTensorMode() as mode:
        output, _ = call(form, torch.bfloat16, change=mode.from_tensor)
    assert type(output).__name__ == "FakeTensor"
    assert (output.shape, output.dtype) == ((2, 11, 15), torch.bfloat16)


@FORMS
def test_a_subclass_of_tensor_sees_its_calls(form):
    class Named(torch.Tensor):
        seen = ()

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.seen = (*cls.seen, str(func))
            return super().__torch_function__(func, types, args, kwargs)

    call(form, torch.float32)
    output, _ = call(form, torch.float32, change=lambda tensor: tensor.as_subclass(Named))
    assert type(output) is Named
    assert any("deform_attn" in name for name in Named.seen)


@FORMS
@pytest.mark.parametrize("requires_grad", [False, True])
def test_meta_tensors_give_shapes_by_the_reference(form, requires_grad):
    output, tensors = call(form, torch.float32, change=lambda tensor: tensor.to("meta"))
    assert (output.device.type, output.shape, output.dtype) == ("meta", (2, 11, 15), torch.float32)
    shapes = inputs_of(named("decoder points"), torch.float32).spatial_shapes
    choice = explain(tensors[0], shapes, *tensors[1:])
    assert choice.backend == "reference"
    assert any("meta" in reason for reason in choice.reasons["native"])
    if requires_grad:
        tensors = [tensor.requires_grad_() for tensor in tensors]
        output = ENTRY_POINTS[form](tensors[0], shapes, *tensors[1:])
        assert [grad.shape for grad in torch.autograd.grad(output.sum(), tensors)] == [t.shape for t in tensors]


@FORMS
def test_deterministic_algorithms_change_nothing(form):
    output, tensors = call(form, torch.float32, requires_grad=True)
    expected = output, *torch.autograd.grad(output.sum(), tensors)
    torch.use_deterministic_algorithms(True)
    try:
        output, tensors = call(form, torch.float32, requires_grad=True)
        actual = output, *torch.autograd.grad(output.sum(), tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_arguments_of_a_twin_are_those_of_its_op(case):
    inputs = inputs_of(case, torch.float32)
    for tensors, judge, given in (
        (inputs.classic_tensors, checks.sampling_inputs, inputs.classic_options),
        (inputs.fused_tensors, checks.attention_inputs, inputs.fused_options),
    ):
        names = {"num_points": None, "interpolation": "bilinear", "padding_mode": "zeros"}
        if judge is checks.attention_inputs:
            names |= {"padding_mask": None, "offset_scale": 0.5}
        options = names | given
        judged = judge(tensors[0], inputs.spatial_shapes, *tensors[1:], **options)
        op, masks = schema.op_of(judged), [options["padding_mask"]] if "padding_mask" in options else []
        twin = [*tensors, *masks, *schema.judged_options(judged)]
        for actual, expected in zip(schema.arguments_of_twin(op, twin), schema.arguments(judged), strict=True):
            same = torch.equal(actual, expected) if isinstance(expected, torch.Tensor) else actual == expected
            assert same if not isinstance(expected, tuple) else actual == list(expected)
        torch.testing.assert_close(
            op.judged(*twin), op.forward(*schema.arguments(judged)), rtol=0, atol=0, equal_nan=True
        )
