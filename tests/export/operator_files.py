"""Files of one node each, made by hand: every operator of the library for ONNX Runtime, with what it takes."""

import numpy
import torch

TENSORRT, MMDEPLOY = "MultiscaleDeformableAttnPlugin_TRT", "MMCVMultiScaleDeformableAttention"
# Who writes which domain: TensorRT's own parser none, NVIDIA TAO, two exporters in the wild, and to_onnx.
PLUGINS = [("", TENSORRT), ("nvidia", TENSORRT), ("trt", TENSORRT), ("trt.plugins", TENSORRT), ("custom_ops", TENSORRT)]
PLUGINS += [("mmdeploy", MMDEPLOY)]
SAMPLE, ATTEND, MASKED = (
    ("deform_attn", name)
    for name in ("MultiScaleDeformableAttention", "DeformableAttention", "MaskedDeformableAttention")
)
ATTRIBUTES_OF_PLUGINS = {TENSORRT: {"plugin_version": "1", "plugin_namespace": ""}, MMDEPLOY: {"im2col_step": 64}}

# Whether ONNX Runtime cuts outputs out of large allocations of its own, in which no sanitizer sees where one ends.
ARENA = True


def write(operator, inputs, attributes=None, *, brain=False, shaped=True):
    """Return a file whose inputs are those of one node, `[domain]::[name]`, by name, and whose output is `out`.

    Every size is free in it and has a name; or it is "fixed", or unknown where `shaped` is False. With `brain` the node
    computes in bfloat16: its floats are cast, and its output is cast back.
    """
    from onnx import TensorProto, ValueInfoProto, helper

    domain, name = operator
    nodes, taken, given = [], [], []
    for key, array in inputs.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        sizes = (
            array.shape if shaped == "fixed" else [f"{key}_{axis}" for axis in range(array.ndim)] if shaped else None
        )
        given.append(helper.make_tensor_value_info(key, kind, sizes))
        taken.append(key)
        if brain and array.dtype == numpy.float32:
            nodes.append(helper.make_node("Cast", [key], [f"{key}_brain"], to=TensorProto.BFLOAT16))
            taken[-1] = f"{key}_brain"
    nodes.append(helper.make_node(name, taken, ["brain_out" if brain else "out"], domain=domain, **attributes or {}))
    if brain:
        nodes.append(helper.make_node("Cast", ["brain_out"], ["out"], to=TensorProto.FLOAT))
    domains = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(nodes, "one_node", given, [ValueInfoProto(name="out")])
    return helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()


def session(data, threads=1, severity=4):
    """Return a session of ONNX Runtime with the operators, for a file, on so many threads."""
    import onnxruntime

    from deform_attn.export.onnxruntime import register

    options = onnxruntime.SessionOptions()
    options.log_severity_level = severity  # a fault is raised, and need not be printed, too
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = ARENA
    register(options)
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(operator, inputs, attributes=None, **options):
    """Return what ONNX Runtime makes of a file of one node."""
    (output,) = session(write(operator, inputs, attributes, **options)).run(None, inputs)
    return torch.from_numpy(output)


def plugin_inputs(value, spatial_shapes, locations, weights, ints=numpy.int32):
    """Return the inputs of a plugin's node; points and weights have an axis for the levels."""
    sizes = numpy.array(spatial_shapes, dtype=ints).reshape(-1, 2)
    areas = sizes.prod(1)
    starts = (areas.cumsum() - areas).astype(ints)
    return {
        "value": value.numpy(),
        "spatial_shapes": sizes,
        "level_start_index": starts,
        "sampling_locations": locations.numpy(),
        "attention_weights": weights.numpy(),
    }


def own_inputs(value, spatial_shapes, *points, ints=numpy.int64):
    """Return the inputs of one of our own nodes, and the numbers 0, 1, ... for their names."""
    sizes = numpy.array(spatial_shapes, dtype=ints).reshape(-1, 2)
    tensors = value.numpy(), sizes, *(tensor.numpy() for tensor in points)
    return {f"input_{i}": tensor for i, tensor in enumerate(tensors)}


def own_attributes(num_points, interpolation="bilinear", padding_mode="zeros", offset_scale=None):
    """Return the attributes of one of our own nodes."""
    scale = {} if offset_scale is None else {"offset_scale": offset_scale}
    return {"num_points": [*num_points], "interpolation": interpolation, "padding_mode": padding_mode, **scale}
