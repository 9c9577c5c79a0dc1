"""The form `native`: a file with one node of ours an attention, which ONNX Runtime runs with our operators."""

import pytest
import torch

from deform_attn import use_backend
from tolerances import assert_close

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)

import onnxruntime  # noqa: E402
from onnx_cases import EXAMPLE, ODD, Calls, assert_right_for_any_sizes, doubled, draw, run_file  # noqa: E402

from deform_attn.backends.native import registration  # noqa: E402
from deform_attn.export import to_onnx  # noqa: E402
from deform_attn.export.onnxruntime import register, session_options  # noqa: E402

pytestmark = pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a file of `Calls` in the form, and what `to_onnx` says of it."""
    file = tmp_path_factory.mktemp("native") / "calls.onnx"
    return file, to_onnx(Calls(), draw(EXAMPLE), file, form="native")


def test_a_file_is_right_for_any_batch_queries_and_sizes(written):
    file, _ = written
    assert_right_for_any_sizes(file)


def test_a_file_has_one_node_a_call_and_was_tried(written):
    file, exported = written
    model = onnx.load(file)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18), ("deform_attn", 1)]
    assert [node.op_type for node in model.graph.node if node.domain] == [
        "MaskedDeformableAttention",
        "DeformableAttention",
        *["MultiScaleDeformableAttention"] * 2,
    ]
    assert not {"Softmax", "GridSample"} & {node.op_type for node in model.graph.node}
    assert exported.tried["maps_0"] == (3, 6, 5, 7)
    assert exported.error < 1e-6
    N, Q = exported.inputs["points"][:2]
    assert exported.outputs["at_points"] == (N, Q, 6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_file_of_another_dtype_is_right_too(dtype, tmp_path):
    file = tmp_path / "calls.onnx"
    exported = to_onnx(Calls(), draw(EXAMPLE, dtype=dtype), file, form="native", verify=dtype != torch.bfloat16)
    assert len(exported.outputs) == 4
    if dtype != torch.bfloat16:  # numpy has none
        arguments = draw(ODD, 1, 7, dtype)
        with use_backend("reference"):
            expected = Calls()(*doubled(arguments))
        for name, tensor in run_file(file, arguments).items():
            assert_close(tensor, expected[name], dtype)


def test_without_the_operators_a_file_is_refused_by_onnx_runtime(written):
    file, _ = written
    with pytest.raises(Exception, match=r"deform_attn:.*is not a registered function/op"):
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_without_the_library_options_lack_the_operators_and_registering_them_says_why(written, monkeypatch):
    file, _ = written
    monkeypatch.setattr(registration, "_library", None)
    monkeypatch.setattr(registration, "_reasons", ["the CPU kernels are not built"])
    with pytest.raises(Exception, match=r"deform_attn:.*is not a registered function/op"):
        onnxruntime.InferenceSession(file, session_options(), providers=["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="deform_attn: the CPU kernels are not built"):
        register(onnxruntime.SessionOptions())
