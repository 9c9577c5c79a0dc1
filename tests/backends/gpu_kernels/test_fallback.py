"""Where Triton cannot compile: the ops fall back to grid_sample after one warning, and say why; no GPU is needed."""

import re
import subprocess
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

from cases import grad_output_of, inputs_of, named
from deform_attn import checks, deformable_attention, explain, multi_scale_deformable_attention
from deform_attn.backends import registry
from deform_attn.backends.base import SlowBackendWarning
from deform_attn.backends.triton import ops, toolchain
from deform_attn.backends.triton.backend import KEYS, TRITON
from deform_attn.torch_ops import schema
from tolerances import assert_close

CASE = named("encoder")
FORMS = pytest.mark.parametrize("form", ["classic", "fused"])


@pytest.fixture
def no_compiler(monkeypatch):
    """Let no kernel compile, as on a machine without a C compiler, and forget it afterwards."""

    def compiled(*_):
        raise toolchain.KernelUnavailable("Triton could not compile for this GPU (RuntimeError: no C compiler)")

    monkeypatch.setattr(toolchain, "require", lambda: compiled())
    monkeypatch.setattr(toolchain, "is_interpreting", lambda: False)
    monkeypatch.setattr(ops, "failures", {})


def judged(form, dtype=torch.float32):
    inputs = inputs_of(CASE, dtype)
    if form == "classic":
        options = [inputs.num_points, "bilinear", "zeros"]
        return checks.sampling_inputs(inputs.value, inputs.spatial_shapes, *inputs.classic_tensors[1:], *options)
    options = [inputs.num_points, inputs.padding_mask, inputs.offset_scale, "bilinear", "zeros"]
    return checks.attention_inputs(inputs.value, inputs.spatial_shapes, *inputs.fused_tensors[1:], *options)


@FORMS
@pytest.mark.usefixtures("no_compiler")
def test_an_op_whose_kernel_does_not_compile_runs_through_grid_sample_after_one_warning(form):
    call = judged(form)
    op, args = schema.op_of(call), schema.arguments(call)
    with pytest.warns(SlowBackendWarning, match="grid_sample.*no C compiler"):
        output = ops.forward_of(op)(*args)
    wanted = (deformable_attention if form == "fused" else multi_scale_deformable_attention)(
        *[call.value, call.spatial_shapes],
        *(call[2:5] if form == "fused" else call[2:4]),
        num_points=call.num_points,
        backend="reference",
        **({"padding_mask": call.padding_mask} if form == "fused" else {}),
    )
    assert_close(output, wanted.double(), torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ops.forward_of(op)(*args), output)
    assert any("no C compiler" in reason for reason in TRITON.unsupported_reasons(call))


@FORMS
@pytest.mark.usefixtures("no_compiler")
def test_a_backward_op_falls_back_below_autograd_and_gives_the_gradients_that_are_wanted(form):
    call = judged(form)
    op, args = schema.op_of(call), schema.arguments(call)
    pull = grad_output_of(CASE, torch.float32)
    every = [True] * len(op.gradients)
    expected = op.backward(pull, *args, every)  # of the CPU's kernels
    for wanted in (every, [i == 1 for i in range(len(every))]):
        with warnings.catch_warnings(), torch._C._AutoDispatchBelowAutograd():
            warnings.simplefilter("ignore", SlowBackendWarning)
            grads = ops.backward_of(op)(pull, *args, wanted)
        for grad, want, whole in zip(grads, wanted, expected, strict=True):
            assert grad.numel() == (whole.numel() if want else 0)
            if want:
                assert_close(grad, whole.double(), torch.float32)


@pytest.mark.usefixtures("no_compiler")
def test_a_call_that_asks_by_name_is_given_the_reason():
    assert ops.prepare(judged("fused")) == ["Triton could not compile for this GPU (RuntimeError: no C compiler)"]


@pytest.mark.usefixtures("no_compiler")
def test_inside_of_a_cuda_graph_the_fault_is_raised(monkeypatch):
    monkeypatch.setattr(toolchain, "is_capturing", lambda _device: True)
    call = judged("classic")
    with pytest.raises(toolchain.KernelUnavailable, match="no C compiler"):
        ops.forward_of(schema.op_of(call))(*schema.arguments(call))
    assert ops.failures == {}


def test_an_error_of_the_device_is_raised_and_not_taken_for_a_missing_compiler():
    pytest.importorskip("triton")

    class Kernel:
        def __init__(self, error):
            self.error = error

        def warmup(self, *_, **__):
            raise self.error

    for error in (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), ValueError("no")):
        with pytest.raises(type(error), match=re.escape(str(error))):
            toolchain.compiled(Kernel(error), (), 4)
    named_ones = [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        subprocess.CalledProcessError(1, "gcc"),
        FileNotFoundError("ptxas"),
        ImportError("libcuda.so cannot be loaded"),
    ]
    for error in named_ones:
        with pytest.raises(toolchain.KernelUnavailable, match=type(error).__name__):
            toolchain.compiled(Kernel(error), (), 4)


def test_explain_says_where_the_kernels_run():
    inputs = inputs_of(CASE, torch.float32)
    reasons = explain(inputs.value, inputs.spatial_shapes, *inputs.classic_tensors[1:]).reasons["triton"]
    if not toolchain.missing() and not toolchain.is_interpreting():
        assert reasons == ["it runs on CUDA and ROCm tensors, not on cpu"]
    assert registry.BACKENDS.index(TRITON) < [b.name for b in registry.BACKENDS].index("grid_sample")


def test_the_ops_have_kernels_for_every_device_of_the_backend():
    for op in schema.OPS:
        for key in KEYS.values():
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deform_attn::{op.name}", key)
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"deform_attn::{op.backward_name}", key)


# What is just within a limit of the kernels, what is beyond it, and what `explain` says of the latter.
LIMITS = {
    "points": ({"P": 128}, {"P": 129}, "more than 256 points per head"),
    "channels": ({"D": 2048}, {"D": 2049}, "more than 2048 channels per head"),
    "heads": ({"M": 65535}, {"M": 65536}, "more than 65535 heads"),
}


@FORMS
@pytest.mark.parametrize("limit", LIMITS)
def test_beyond_a_limit_the_kernels_leave_a_call_to_other_backends_and_explain_says_why(form, limit, monkeypatch):
    monkeypatch.setattr(toolchain, "missing", list)
    within, beyond, reason = LIMITS[limit]
    found = [explained(form, **sizes) for sizes in (within, beyond)]
    assert found[0].backend == "triton" != found[1].backend
    # Of real tensors, which only a GPU has, grid_sample would run the call.
    assert found[1].reasons["grid_sample"] == ["meta and fake tensors have no numbers to look at for NaN"]
    assert [explanation.reasons["triton"] for explanation in found] == [[], [reason]]


@FORMS
def test_beyond_2_to_the_31_pixels_another_backend_runs_a_call(form, monkeypatch):
    monkeypatch.setattr(toolchain, "missing", list)
    explanation = explained(form, maps=[(2**16, 2**15), (1, 1)])
    assert explanation.reasons["triton"] == ["more than 2^31 pixels"]
    assert explanation.backend != "triton"


def explained(form, maps=((3, 4), (2, 1)), M=1, D=1, P=1, Q=2):
    """Return what `explain` says of a call on a GPU: its tensors are fake, so that none is needed."""
    S, L = sum(H * W for H, W in maps), len(maps)
    with FakeTensorMode():
        value, points = torch.empty(1, S, M, D, device="cuda"), torch.empty(1, Q, M, L, P, 2, device="cuda")
        weights = torch.empty(1, Q, M, L * P, device="cuda")
        if form == "classic":
            return explain(value, maps, points, weights.unflatten(-1, (L, P)))
        return explain(value, maps, torch.empty(1, Q, L, 2, device="cuda"), points, weights)
