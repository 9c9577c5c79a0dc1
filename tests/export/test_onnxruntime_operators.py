"""The operators for ONNX Runtime: each is the op, under each of its names, for every type, whoever calls it."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cases import CASES, case_id, expected_classic, expected_fused, inputs_of
from deform_attn import multi_scale_deformable_attention
from tolerances import assert_close

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy
from operator_files import (
    ATTEND,
    ATTRIBUTES_OF_PLUGINS,
    MASKED,
    PLUGINS,
    SAMPLE,
    TENSORRT,
    own_attributes,
    own_inputs,
    plugin_inputs,
    run,
    session,
    write,
)

from deform_attn.backends.native import registration
from deform_attn.export.onnxruntime import library_path

pytestmark = pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built")
MODES = [*itertools.product(("bilinear", "nearest"), ("zeros", "border"))]
FLOATS = torch.float32, torch.float16, torch.float64, torch.bfloat16


def numpy_inputs(case, dtype):
    """Return the inputs of a case for the two kinds of our nodes; bfloat16 as the float32 that has the same numbers."""
    inputs = inputs_of(case, dtype)
    N, Q, M, T = *inputs.sampling_offsets.shape[:2], case.heads, sum(case.num_points)
    kept = torch.float32 if dtype == torch.bfloat16 else dtype
    references = inputs.reference_points if inputs.reference_points.ndim == 4 else inputs.reference_points.unsqueeze(2)
    fused = references, inputs.sampling_offsets.reshape(N, Q, M, T, 2), inputs.attention_logits
    classic = inputs.sampling_locations.reshape(N, Q, M, T, 2), inputs.attention_weights.reshape(N, Q, M, T)
    mask = () if inputs.padding_mask is None else (inputs.padding_mask,)
    value = inputs.value.to(kept)
    return (
        own_inputs(value, case.spatial_shapes, *(tensor.to(kept) for tensor in fused), *mask),
        own_inputs(value, case.spatial_shapes, *(tensor.to(kept) for tensor in classic), ints=numpy.int32),
    )


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_our_operators_are_the_op_in_every_mode_and_type(case):
    runs = [(torch.float32, mode) for mode in MODES] + [(dtype, MODES[0]) for dtype in FLOATS[1:]]
    for dtype, mode in runs:
        fused, classic = numpy_inputs(case, dtype)
        brain = dtype == torch.bfloat16
        kept = torch.float32 if brain else dtype
        attend = ATTEND if len(fused) == 5 else MASKED
        attributes = own_attributes(case.num_points, *mode, offset_scale=case.offset_scale)
        expected = expected_fused(case, dtype, *mode)
        assert_close(run(attend, fused, attributes, brain=brain), expected, kept, dtype)
        expected = expected_classic(case, dtype, *mode)
        attributes = own_attributes(case.num_points, *mode)
        assert_close(run(SAMPLE, classic, attributes, brain=brain), expected, kept, dtype)


def plugin_case(dtype=torch.float32, **sizes):
    """Return value, sizes, locations and weights, the latter with an axis for the levels; batch and queries are odd."""
    N, Q, M, D, P = (sizes.get(name, size) for name, size in zip("NQMDP", (3, 5, 2, 4, 3), strict=True))
    shapes = sizes.get("shapes", ((4, 6), (2, 5), (3, 1)))
    generator = torch.Generator().manual_seed(7)
    value = torch.randn(N, sum(H * W for H, W in shapes), M, D, generator=generator)
    locations = torch.rand(N, Q, M, len(shapes), P, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(N, Q, M, len(shapes), P, generator=generator)
    return value.to(dtype), shapes, locations.to(dtype), weights.to(dtype)


@pytest.mark.parametrize("plugin", PLUGINS, ids=str)
def test_a_node_of_a_plugin_is_the_op_under_each_name_that_files_have(plugin):
    for dtype, ints in itertools.product((torch.float32, torch.float16), (numpy.int32, numpy.int64)):
        value, shapes, locations, weights = plugin_case(dtype)
        expected = multi_scale_deformable_attention(value.double(), shapes, locations.double(), weights.double())
        if plugin[1] == TENSORRT:
            expected = expected.unflatten(2, value.shape[2:])  # [N, Q, M, D]
        inputs = plugin_inputs(value, shapes, locations, weights, ints)
        assert_close(run(plugin, inputs, ATTRIBUTES_OF_PLUGINS[plugin[1]]), expected, dtype)


def test_other_operators_of_a_file_are_those_of_onnx_beside_a_node_without_a_domain():
    from onnx import ValueInfoProto, helper

    value, shapes, locations, weights = plugin_case()
    inputs = plugin_inputs(value, shapes, locations, weights)
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    nodes = [
        helper.make_node("Neg", ["value"], ["negative"]),
        helper.make_node(TENSORRT, ["negative", *list(inputs)[1:]], ["attended"]),
        helper.make_node("Softmax", ["attended"], ["out"], axis=-1),
    ]
    for version in (16, 18, 20):
        graph = helper.make_graph(nodes, "mixed", given, [ValueInfoProto(name="out")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9)
        (output,) = session(model.SerializeToString()).run(None, inputs)
        expected = multi_scale_deformable_attention(-value.double(), shapes, locations.double(), weights.double())
        assert_close(torch.from_numpy(output), expected.unflatten(2, value.shape[2:]).softmax(-1), torch.float32)


def test_the_shape_of_the_output_follows_from_those_of_the_inputs():
    value, shapes, locations, weights = plugin_case()
    plugin = plugin_inputs(value, shapes, locations, weights)
    own = own_inputs(value, shapes, locations.flatten(3, 4), weights.flatten(3))
    for operator, inputs, points, rank in (
        (PLUGINS[0], plugin, "sampling_locations", 4),
        (PLUGINS[-1], plugin, "sampling_locations", 3),
        (SAMPLE, own, "input_2", 3),
    ):
        first, attributes = next(iter(inputs)), own_attributes([3] * 3)
        (named,) = session(write(operator, inputs, attributes)).get_outputs()
        assert named.shape[:2] == [f"{first}_0", f"{points}_1"]
        if rank == 4:
            assert named.shape[2:] == [f"{first}_2", f"{first}_3"]
        (fixed,) = session(write(operator, inputs, attributes, shaped="fixed")).get_outputs()
        assert fixed.shape == ([3, 5, 2, 4] if rank == 4 else [3, 5, 8])
        (unknown,) = session(write(operator, inputs, attributes, shaped=False)).get_outputs()
        assert unknown.type == fixed.type == named.type == "tensor(float)"
        # Free sizes of which nothing is known have names of their own, lest others be taken to be the same.
        assert len({*unknown.shape, *named.shape}) == rank + len(named.shape)


def test_a_run_prints_no_warning_whatever_is_known_of_its_shapes(capfd):
    value, shapes, locations, weights = plugin_case()
    inputs = plugin_inputs(value, shapes, locations, weights)
    for operator, shaped in itertools.product((PLUGINS[0], PLUGINS[-1]), (True, False, "fixed")):
        session(write(operator, inputs, shaped=shaped), severity=2).run(None, inputs)
    assert capfd.readouterr().err == ""


def test_a_file_that_says_no_shapes_runs_in_its_type():
    value, shapes, locations, weights = plugin_case(torch.float16)
    inputs = plugin_inputs(value, shapes, locations, weights)
    expected = multi_scale_deformable_attention(value.double(), shapes, locations.double(), weights.double())
    output = run(PLUGINS[1], inputs, shaped=False)
    assert_close(output, expected.unflatten(2, value.shape[2:]), torch.float16)


def test_arrays_without_numbers_are_taken():
    for sizes in ({"N": 0}, {"Q": 0}, {"P": 0}, {"shapes": ((0, 4), (3, 2))}, {"D": 0}, {"M": 0}):
        value, shapes, locations, weights = plugin_case(**sizes)
        output = run(PLUGINS[1], plugin_inputs(value, shapes, locations, weights))
        expected = multi_scale_deformable_attention(
            value, shapes, locations.flatten(3, 4), weights.flatten(3), num_points=[locations.shape[4]] * len(shapes)
        )
        assert_close(output.flatten(2), expected, torch.float32)


def test_the_result_is_that_of_torch_to_the_last_bit_for_any_number_of_threads():
    value, shapes, locations, weights = plugin_case(N=1, Q=600, M=8, D=32, P=4, shapes=((31, 43), (16, 23), (5, 9)))
    inputs = plugin_inputs(value, shapes, locations, weights)
    data = write(PLUGINS[1], inputs)
    expected = multi_scale_deformable_attention(value, shapes, locations, weights, backend="native")
    for threads in (1, 2, 5):
        (output,) = session(data, threads).run(None, inputs)
        assert torch.equal(torch.from_numpy(output).flatten(2), expected)


def test_several_sessions_may_run_on_several_threads_at_once():
    cases = [plugin_case(Q=queries, N=1, M=4, D=16, shapes=((20, 30), (9, 7))) for queries in (150, 210, 340)]
    inputs = [plugin_inputs(*case) for case in cases]
    sessions = [session(write(PLUGINS[i % len(PLUGINS)], inputs[0]), threads=1 + i) for i in range(3)]
    expected = [multi_scale_deformable_attention(*case, backend="native") for case in cases]

    def correct(job):
        (output,) = sessions[job % 3].run(None, inputs[job // 3 % 3])
        return torch.equal(torch.from_numpy(output).flatten(2), expected[job // 3 % 3])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(correct, range(72)))


REGISTERED_TWICE = """
import onnxruntime, sys
from deform_attn.export.onnxruntime import register
for _ in range(3):
    options = onnxruntime.SessionOptions()
    register(options)
    file = open(sys.argv[1], "rb").read()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    del options
    print(session.get_outputs()[0].shape[0])
"""


def test_options_may_be_registered_and_dropped_as_often_as_one_likes(children, tmp_path):
    value, shapes, locations, weights = plugin_case()
    (tmp_path / "file.onnx").write_bytes(write(PLUGINS[0], plugin_inputs(value, shapes, locations, weights)))
    done = children.run(REGISTERED_TWICE, str(tmp_path / "file.onnx"))
    assert done.stdout.split() == ["value_0"] * 3, done.stderr


MEMORY = """
import resource, sys, torch
sys.path[:0] = sys.argv[2:]
import operator_files, pickle
inputs = pickle.load(open(sys.argv[1], "rb"))
run = operator_files.session(operator_files.write(operator_files.PLUGINS[1], inputs), threads=2)
def peak():
    for _ in range(60):
        run.run(None, inputs)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak()
before = peak()
for _ in range(5):
    after = peak()
print(after - before)
"""


def test_runs_keep_no_memory(children, tmp_path):
    import pickle
    from pathlib import Path

    value, shapes, locations, weights = plugin_case(N=1, Q=500, M=8, D=32, P=4, shapes=((31, 43), (16, 23)))
    (tmp_path / "inputs").write_bytes(pickle.dumps(plugin_inputs(value, shapes, locations, weights)))
    done = children.run(MEMORY, str(tmp_path / "inputs"), str(Path(__file__).parent))
    assert int(done.stdout) < 2000, done.stderr  # KiB; an output is 500 KB, and 300 of them were made


def test_the_path_is_that_of_the_library_which_the_process_has():
    assert library_path() == registration.loaded().path
