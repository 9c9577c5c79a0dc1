"""The forms: each is the op, in torch against the oracle, and as a file that runtimes run on sizes of their own."""

import itertools

import pytest
import torch

from cases import CASES, case_id, expected_classic, expected_fused, inputs_of
from deform_attn import use_backend
from deform_attn.export import forms
from deform_attn.torch_ops import schema
from tolerances import assert_close

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)

from onnx_cases import EXAMPLE, ODD, Calls, assert_right_for_any_sizes, doubled, draw, run_file  # noqa: E402

from deform_attn.export import to_onnx  # noqa: E402

PLAIN = [name for name, form in forms.FORMS.items() if form.is_plain]
MODES = [*itertools.product(("bilinear", "nearest"), ("zeros", "border"))]


def is_empty(case):
    return any(H * W == 0 for H, W in case.spatial_shapes)


def calls_of(case, dtype):
    """Return the arguments of the two ops, up to their options."""
    inputs = inputs_of(case, dtype)
    N, Q, *_ = inputs.sampling_offsets.shape
    M, T = case.heads, sum(case.num_points)
    sizes = schema.flat(case.spatial_shapes)
    references = inputs.reference_points
    references = references if references.ndim == 4 else references.unsqueeze(2)
    offsets = inputs.sampling_offsets.reshape(N, Q, M, T, 2)
    fused = references, offsets, inputs.attention_logits, inputs.padding_mask, case.offset_scale
    classic = inputs.sampling_locations.reshape(N, Q, M, T, 2), inputs.attention_weights.reshape(N, Q, M, T)
    return [(schema.ATTENDS, inputs.value, sizes, fused), (schema.SAMPLES, inputs.value, sizes, classic)]


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("form", PLAIN)
def test_a_plain_form_is_the_op_in_every_mode_and_for_sizes_in_ints_or_a_tensor(form, case):
    table = forms.decompositions(form)
    for dtype, modes in ((torch.float64, MODES), (torch.bfloat16, MODES[:1])):
        for mode in modes:
            expected = expected_fused(case, dtype, *mode), expected_classic(case, dtype, *mode)
            for (ops, value, sizes, rest), each in zip(calls_of(case, dtype), expected, strict=True):
                call = *rest, case.num_points, *mode
                assert_close(table[ops[0].forward](value, sizes, *call), each, dtype)
                if not is_empty(case):
                    by_tensor = table[ops[1].forward](value, torch.tensor(sizes).reshape(-1, 2), *call)
                    assert_close(by_tensor, each, dtype)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in PLAIN])
def written(request, tmp_path_factory):
    """Return the name of a form, a file of `Calls` in it, and what `to_onnx` says of it."""
    file = tmp_path_factory.mktemp(request.param) / "calls.onnx"
    return request.param, file, to_onnx(Calls(), draw(EXAMPLE), file, form=request.param)


def test_a_file_is_right_in_onnx_runtime_for_any_batch_queries_and_sizes(written):
    _, file, _ = written
    assert_right_for_any_sizes(file)


def test_a_file_has_the_operators_of_its_form_and_says_what_it_takes(written):
    form, file, exported = written
    model = onnx.load(file)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    names = {node.op_type for node in model.graph.node}
    assert ("GridSample" in names) == (form == "gridsample")
    assert not {name for name in names if "Sequence" in name or name in ("If", "Loop", "NonZero", "GatherND")}
    assert {node.domain for node in model.graph.node} == {""}
    ranks = [len(each.type.tensor_type.shape.dim) for each in (*model.graph.value_info, *model.graph.output)]
    assert max(ranks) <= 5
    N, Q = exported.inputs["points"][:2]
    assert exported.inputs["points"] == (N, Q, 2)
    assert exported.inputs["spatial_shapes"] == (2, 2)
    assert exported.inputs["maps_0"][:2] == (N, 6)
    sides = exported.inputs["maps_0"][2:] + exported.inputs["maps_1"][2:]
    assert len({N, Q, *sides}) == 6
    assert all(isinstance(side, str) for side in (N, Q, *sides))
    locations = exported.inputs["locations"][1]  # whose queries are none of the others'
    queries = {"at_points": Q, "at_boxes": Q, "classic": locations, "sized": locations}
    assert exported.outputs == {name: (N, each, 6) for name, each in queries.items()}
    assert exported.tried["maps_0"] == (3, 6, 5, 7)
    assert 0 < exported.error < 1e-6


def test_openvino_runs_a_file(written):
    openvino = pytest.importorskip("openvino")
    _, file, _ = written
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    arguments = draw(ODD, 1, 7)
    with use_backend("reference"):
        expected = Calls()(*doubled(arguments))
    flat = [*arguments[0], *arguments[1:]]
    results = compiled([tensor.numpy() for tensor in flat])
    for name, tensor in expected.items():
        assert_close(torch.from_numpy(results[name].copy()), tensor, torch.float32)


def test_a_file_says_nothing_of_the_machine_that_wrote_it(written):
    _, file, _ = written
    content = file.read_bytes()
    assert b'File "' not in content
    assert b".py" not in content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "dtype"), [("gridsample", torch.float16), ("gather", torch.float16), ("gather", torch.float64)]
)
def test_a_file_of_another_dtype_is_right_too(form, dtype, tmp_path):
    to_onnx(Calls(), draw(EXAMPLE, dtype=dtype), tmp_path / "calls.onnx", form=form)
    arguments = draw(ODD, 1, 7, dtype)
    with use_backend("reference"):
        expected = Calls()(*doubled(arguments))
    for name, tensor in run_file(tmp_path / "calls.onnx", arguments).items():
        assert_close(tensor, expected[name], dtype)
