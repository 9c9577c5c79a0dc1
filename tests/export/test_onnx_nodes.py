"""The forms of one node: what the node is given, and the file with the node's op put in as a function of ONNX."""

import numpy
import pytest
import torch

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)

from onnx_cases import EXAMPLE, LARGE, ODD, Calls, doubled, draw, run_file  # noqa: E402
from plugin import function  # noqa: E402

from deform_attn import DeformableAttention, use_backend  # noqa: E402
from deform_attn.export import interface, nodes, to_onnx  # noqa: E402
from tolerances import assert_close  # noqa: E402

FORMS = {"tensorrt": (nodes.TENSORRT, {"plugin_version": 2}), "mmdeploy": (nodes.MMDEPLOY, {})}
slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")


@pytest.fixture(scope="module", params=[pytest.param(name, marks=slow) for name in FORMS])
def written(request, tmp_path_factory):
    """Return the name of a form, and a file of `Calls` in it."""
    file = tmp_path_factory.mktemp(request.param) / "calls.onnx"
    to_onnx(Calls(plain=False), draw(EXAMPLE), file, form=request.param, **FORMS[request.param][1])
    return request.param, file


def test_a_file_with_the_op_of_its_node_is_right_for_any_batch_queries_and_sizes(written, tmp_path):
    form, file = written
    model = onnx.load(file)
    name, _ = FORMS[form]
    domain, op = name.split("::")
    model.functions.append(function(domain, op, sorted(interface.INTERFACES[name].attributes), form == "mmdeploy"))
    onnx.save(model, tmp_path / "whole.onnx")
    for shapes, batch, queries in ((EXAMPLE, 2, 5), (ODD, 1, 7), (LARGE, 3, 1)):
        arguments = draw(shapes, batch, queries)
        with use_backend("reference"):
            expected = Calls(plain=False)(*doubled(arguments))
        actual = run_file(tmp_path / "whole.onnx", arguments)
        for key, tensor in expected.items():
            assert_close(actual[key], tensor, torch.float32)


def test_every_call_is_one_node_with_the_documented_inputs_and_attributes(written):
    form, file = written
    graph = onnx.load(file).graph
    domain, op = FORMS[form][0].split("::")
    found = [node for node in graph.node if (node.domain, node.op_type) == (domain, op)]
    assert len(found) == 4
    assert interface.faults(graph) == []
    values = {each.name: onnx.helper.get_attribute_value(each) for each in found[0].attribute}
    tensorrt = {"plugin_version": b"2", "plugin_namespace": b""}
    assert values == (tensorrt if form == "tensorrt" else {"im2col_step": 64})
    assert {node.op_type for node in graph.node if node.domain == ""}.isdisjoint({"GridSample", "SplitToSequence"})


def test_a_node_that_its_plugin_would_refuse_is_found(written):
    form, file = written
    graph = onnx.load(file).graph
    (node, *_) = [node for node in graph.node if node.domain]
    node.input[1], node.input[2] = node.input[2], node.input[1]
    del node.attribute[:]
    takes, lacks = interface.faults(graph)
    assert takes.startswith(f"{node.op_type} takes types and ranks")
    assert lacks == f"{node.op_type} has attributes [], not {sorted(interface.INTERFACES[FORMS[form][0]].attributes)}"


def test_a_graph_without_a_node_is_found_and_refused():
    graph = onnx.GraphProto()
    assert interface.faults(graph) == ["no node of a plugin"]
    with pytest.raises(ValueError, match=r"^model: expected one whose nodes keep to .*, got no node of a plugin"):
        interface.check(graph)


def test_an_attention_is_one_node_whose_batch_and_sizes_are_free(tmp_path):
    attention = DeformableAttention(8, num_heads=2, num_points=3)
    arguments = torch.randn(2, 5, 8), torch.rand(2, 5, 2), torch.randn(2, 8, 4, 6)
    exported = to_onnx(attention, arguments, tmp_path / "attention.onnx", form="tensorrt")
    graph = onnx.load(tmp_path / "attention.onnx").graph
    assert len([node for node in graph.node if node.domain]) == 1
    assert interface.faults(graph) == []
    assert exported.error is None
    assert [isinstance(size, str) for size in exported.inputs["features"]] == [True, False, True, True]


@slow
@pytest.mark.parametrize("half_node", [False, True])
def test_the_node_of_a_float16_model_is_float32_unless_it_is_asked_for(half_node, tmp_path):
    file = tmp_path / "half.onnx"
    to_onnx(Calls(plain=False), draw(EXAMPLE, dtype=torch.float16), file, form="tensorrt", half_node=half_node)
    model = onnx.load(file)
    types = {each.name: each.type.tensor_type.elem_type for each in model.graph.value_info}
    kind = onnx.TensorProto.FLOAT16 if half_node else onnx.TensorProto.FLOAT
    (node, *_) = [node for node in model.graph.node if node.domain]
    assert types[node.output[0]] == types[node.input[3]] == kind
    assert {each.type.tensor_type.elem_type for each in model.graph.output} == {onnx.TensorProto.FLOAT16}


def test_levels_with_fewer_points_are_filled_up_inside_their_map_with_weight_zero(monkeypatch):
    given = []

    def symbolic(name, tensors, attributes, *, dtype, shape, version):
        given.extend(tensors)
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch.onnx.ops, "symbolic", symbolic)
    from deform_attn.checks import SamplingInputs

    locations, weights = torch.randn(1, 2, 1, 12, 2), torch.rand(1, 2, 1, 12)
    inputs = SamplingInputs(
        torch.rand(1, 41, 1, 2), ((4, 5), (3, 5), (2, 3)), locations, weights, (3, 6, 3), "bilinear", "zeros"
    )
    nodes.tensorrt(inputs, plugin_version=1, half_node=False)
    _, sizes, starts, padded, shares = given
    assert sizes.tolist() == [[4, 5], [3, 5], [2, 3]]
    assert starts.tolist() == [0, 20, 35]
    assert (sizes.dtype, starts.dtype) == (torch.int32, torch.int32)
    for level, (first, count) in enumerate(((0, 3), (3, 6), (9, 3))):
        assert torch.equal(padded[:, :, :, level, :count], locations[:, :, :, first : first + count])
        assert torch.equal(shares[:, :, :, level, :count], weights[:, :, :, first : first + count])
        assert shares[:, :, :, level, count:].count_nonzero() == 0
        numpy.testing.assert_array_equal(padded[:, :, :, level, count:], 0.5)
