"""The operators for ONNX Runtime take files of strangers: what does not fit is a sentence."""

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from operator_files import ATTEND, MASKED, PLUGINS, SAMPLE, own_attributes, own_inputs, plugin_inputs, run, session

from deform_attn.backends.native import registration

pytestmark = pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built")

SHAPES = ((2, 3), (1, 2))
VALUE, LOCATIONS, WEIGHTS = torch.rand(2, 8, 3, 4), torch.rand(2, 5, 3, 2, 1, 2), torch.rand(2, 5, 3, 2, 1)
MASK = torch.zeros(2, 8, dtype=torch.bool)


def plugin(**changes):
    return {**plugin_inputs(VALUE, SHAPES, LOCATIONS, WEIGHTS), **changes}


def own(*changes, raw=False, masked=False):
    """Return the inputs of our own node with some changed: pairs of the number of an input and what it is instead."""
    points = LOCATIONS.flatten(3, 4), WEIGHTS.flatten(3)
    references = (torch.rand(2, 5, 2, 2),) if raw or masked else ()
    inputs = own_inputs(VALUE, SHAPES, *references, *points, *((MASK,) if masked else ()))
    return {**inputs, **{f"input_{i}": numpy.asarray(array) for i, array in changes}}


def zeros(*shape, dtype="f4"):
    return numpy.zeros(shape, dtype)


FAULTS = [
    (plugin(value=zeros(2, 8, 12)), "value: expected [N, S, M, D], got [2, 8, 12]. Split"),
    (plugin(sampling_locations=zeros(2, 5, 3, 2, 2)), "[N, Q, M, L, P, 2] with L = 2, got [2, 5, 3, 2, 2]"),
    (plugin(sampling_locations=zeros(2, 5, 3, 3, 1, 2)), "with L = 2, got [2, 5, 3, 3, 1, 2]"),
    (plugin(sampling_locations=zeros(2, 5, 3, 2, 1, 3)), "sampling_locations: expected [2, 5, 3, 2, 2]"),
    (plugin(sampling_locations=zeros(2, 5, 4, 2, 1, 2)), "sampling_locations: expected [2, 5, 3, 2, 2]"),
    (plugin(sampling_locations=zeros(2, 0, 3, 2, 2**31, 2)), "with L = 2, got [2, 0, 3, 2, 2147483648, 2]"),
    (
        plugin(attention_weights=zeros(2, 5, 3, 2)[..., :1]),
        "attention_weights: expected [2, 5, 3, 2], got [2, 5, 3, 1]",
    ),
    (plugin(attention_weights=zeros(2, 4, 3, 2, 1)), "attention_weights: expected [2, 5, 3, 2], got [2, 4, 3, 2, 1]"),
    (
        plugin(attention_weights=zeros(2, 5, 3, 2, 1, dtype="i4")),
        "attention_weights: expected a tensor of dtype float32",
    ),
    (plugin(sampling_locations=zeros(2, 5, 3, 2, 1, 2, dtype="f8")), "value: expected float64, as another input is"),
    (plugin(spatial_shapes=zeros(2, 2)), "[L, 2] = [2, 2] of int64 or int32, got [2, 2] of another type"),
    (plugin(spatial_shapes=zeros(2, 3, dtype="i4")), "[L, 2] = [2, 2] of int64 or int32, got [2, 3]."),
    (plugin(spatial_shapes=zeros(4, dtype="i4")), "with L = 0, got [2, 5, 3, 2, 1, 2]"),
    (
        plugin(spatial_shapes=numpy.array([[2, 3], [2, 2]])),
        "got [(2, 3), (2, 2)], 10 pixels in all, but value has S = 8",
    ),
    (plugin(spatial_shapes=numpy.array([[2, 4], [0, -1]])), "got the negative size (0, -1)"),
    (plugin(spatial_shapes=numpy.array([[2**31, 1], [1, 2]])), "expected sizes below 2^31"),
    (plugin(spatial_shapes=numpy.array([[2**30, 2**30], [1, 2]])), "expected fewer than 2^47 pixels"),
    (plugin(level_start_index=numpy.array([0, 5])), "level 1 to begin at pixel 6, where the one before it ends, got 5"),
    (plugin(level_start_index=numpy.array([0, 7])), "got 7. Lay the levels out one after the other, without gaps."),
    (plugin(level_start_index=numpy.array([-1, 6])), "level 0 to begin at pixel 0"),
    (
        plugin(level_start_index=numpy.array([0])),
        "level_start_index: expected a tensor [2] of int64 or int32, got [1].",
    ),
    (
        plugin(level_start_index=zeros(2)),
        "level_start_index: expected a tensor [2] of int64 or int32, got [2] of another",
    ),
    (plugin(level_start_index=numpy.array(["0", "6"], object)), "got [2] of another type"),
]


@pytest.mark.parametrize(("inputs", "sentence"), FAULTS, ids=[sentence[-40:] for _, sentence in FAULTS])
def test_a_fault_of_a_plugins_node_is_an_error_of_its_run(inputs, sentence):
    for operator in (PLUGINS[1], PLUGINS[-1]):
        with pytest.raises(InvalidArgument) as caught:
            run(operator, inputs)
        assert sentence in str(caught.value)


def test_sizes_that_no_memory_holds_are_refused_though_the_arrays_are_empty():
    from onnx import TensorProto, ValueInfoProto, helper

    sizes = {
        "value": (0, 8, 2**40, 2**22),
        "sampling_locations": (0, 5, 2**40, 2, 1, 2),
        "attention_weights": (0, 5, 2**40, 2, 1),
    }
    given = {name: array for name, array in plugin().items() if name not in sizes}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    inputs += [
        helper.make_tensor_value_info(f"{name}_sizes", TensorProto.INT64, [len(of)]) for name, of in sizes.items()
    ]
    nodes = [helper.make_node("ConstantOfShape", [f"{name}_sizes"], [name]) for name in sizes]
    nodes += [helper.make_node(PLUGINS[1][1], list(plugin()), ["out"], domain=PLUGINS[1][0])]
    graph = helper.make_graph(nodes, "huge", inputs, [ValueInfoProto(name="out")])
    domains = [helper.make_opsetid("", 18), helper.make_opsetid(PLUGINS[1][0], 1)]
    data = helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()
    with pytest.raises(InvalidArgument, match="tensors that a memory can hold"):
        session(data).run(None, given | {f"{name}_sizes": numpy.array(of) for name, of in sizes.items()})


SAMPLED, ATTENDED = own_attributes([1, 1]), own_attributes([1, 1], offset_scale=0.5)
OWN_FAULTS = [
    (SAMPLE, own((1, numpy.array([[2, 3]]))), "[L, 2] = [2, 2] of int64 or int32, got [1, 2]."),
    (
        SAMPLE,
        own((2, zeros(2, 5, 3, 3, 2)), (3, zeros(2, 5, 3, 3))),
        "num_points: expected counts >= 0 that add up to T = 3, got [1, 1]",
    ),
    (SAMPLE, own((2, zeros(2, 5))), "sampling_locations: expected [2, 5, 3, 0, 2], got [2, 5]"),
    (SAMPLE, own((2, zeros())), "sampling_locations: expected [2, 0, 3, 0, 2], got []"),
    (ATTEND, own((2, zeros(2, 5, 3, 2)), raw=True), "reference_points: expected [2, 5, 2, 2], got [2, 5, 3, 2]"),
    (ATTEND, own((2, zeros(2, 5, 2)), raw=True), "reference_points: expected [2, 5, 1, 4], got [2, 5, 2]"),
    (ATTEND, own((2, zeros(2, 5, 1, 2, dtype="f8")), raw=True), "value: expected float64, as another input is"),
    (ATTEND, own((4, zeros(2, 5, 3, 2, 1)), raw=True), "attention_logits: expected [2, 5, 3, 2], got [2, 5, 3, 2, 1]"),
    (MASKED, own((5, zeros(2, 7, dtype="?")), masked=True), "padding_mask: expected [2, 8], got [2, 7]"),
]


@pytest.mark.parametrize(("operator", "inputs", "sentence"), OWN_FAULTS, ids=[each[2][-40:] for each in OWN_FAULTS])
def test_a_fault_of_our_own_node_is_an_error_of_its_run(operator, inputs, sentence):
    with pytest.raises(InvalidArgument) as caught:
        run(operator, inputs, SAMPLED if operator == SAMPLE else ATTENDED)
    assert sentence in str(caught.value)


def without(name):
    return {key: value for key, value in ATTENDED.items() if key != name}


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        (without("num_points"), "num_points: expected a list of ints, got no such attribute. Add it to the node."),
        (ATTENDED | {"num_points": 2}, "num_points: expected a list of ints, got no such attribute"),
        (ATTENDED | {"num_points": [1.0, 1.0]}, "num_points: expected a list of ints, got no such attribute"),
        (without("interpolation"), "interpolation: expected a string, got no such attribute"),
        (ATTENDED | {"interpolation": 1}, "interpolation: expected a string, got no such attribute"),
        (
            ATTENDED | {"interpolation": "cubic"},
            "interpolation: expected one of 'bilinear', 'nearest', got another text",
        ),
        (
            ATTENDED | {"padding_mode": "border" * 99},
            "padding_mode: expected one of 'zeros', 'border', got another text",
        ),
        (without("offset_scale"), "offset_scale: expected a float, got no such attribute"),
        (ATTENDED | {"offset_scale": float("nan")}, "offset_scale: expected a finite number, got nan. The published"),
        (ATTENDED | {"offset_scale": "1"}, "offset_scale: expected a float, got no such attribute"),
    ],
    ids=str,
)
def test_a_fault_of_an_attribute_is_an_error_when_the_file_is_loaded(attributes, sentence):
    with pytest.raises((Fail, InvalidArgument, RuntimeException)) as caught:
        run(ATTEND, own(raw=True), attributes)
    assert sentence in str(caught.value)


def test_counts_are_judged_whatever_they_are():
    for counts in ([2], [2, -1, 1], [-1, 3], [2**62, 2**62], [1] * 70):
        with pytest.raises(InvalidArgument, match=r"num_points: expected counts|spatial_shapes: expected"):
            run(SAMPLE, own(), own_attributes(counts))
