"""Files with one of the operators for ONNX Runtime: right ones and wrong ones, run there and compared with the op.

A right file must give the bits of the op in torch. A wrong one may end in an error with a sentence, or it is taken;
then the op must take the same tensors and give the same bits. A crash ends the process, which the run of the fuzz sees.
"""

import random
from dataclasses import dataclass, field

import numpy
import torch

from deform_attn import deformable_attention, multi_scale_deformable_attention

PLUGINS = [
    (domain, "MultiscaleDeformableAttnPlugin_TRT") for domain in ("", "nvidia", "trt", "trt.plugins", "custom_ops")
]
PLUGINS += [("mmdeploy", "MMCVMultiScaleDeformableAttention")]
SAMPLE, ATTEND, MASKED = "MultiScaleDeformableAttention", "DeformableAttention", "MaskedDeformableAttention"
OPERATORS = [*PLUGINS, *(("deform_attn", name) for name in (SAMPLE, ATTEND, MASKED) * 3)]
TYPES = ["f4", "f2", "f8", "i4", "i8", "?", "u1", "i2", "u8"]
ODD_INTS = [0, 1, -1, 2, 7, 2**15, 2**24, 2**31 - 1, 2**31, 2**32, 2**46, 2**62, -(2**63), 2**63 - 1]
ODD_FLOATS = [numpy.nan, numpy.inf, -numpy.inf, 0.0, -0.0, 1.0, 0.5, 1e9, -1e30, 65504.0]


@dataclass
class File:
    """A node with its inputs, by name in its order, and its attributes."""

    operator: tuple[str, str]
    arrays: dict[str, numpy.ndarray]
    attributes: dict
    faults: list[str] = field(default_factory=list)  # what was done to a right file
    empty: dict[str, tuple[int, ...]] = field(default_factory=dict)  # inputs without numbers, made inside the file
    threads: int = 1
    shaped: bool = True

    def __str__(self):
        shapes = {name: f"{array.dtype}{list(array.shape)}" for name, array in self.arrays.items()}
        return f"{self.operator} of {shapes}, {self.attributes}, {self.threads} threads; {'; '.join(self.faults)}"


def draw(number):
    """Draw a file; two of three are wrong."""
    choose = random.Random(number)
    file = right(choose)
    for _ in range(choose.choice((0, 1, 1, 1, 2, 4)) if number % 3 else 0):
        choose.choice((retype, resize, rerank, odd_numbers, odd_numbers, reattribute, emptied, dropped))(choose, file)
    return file


def right(choose):
    """Draw a file that fits."""
    operator = choose.choice(OPERATORS)
    generator = numpy.random.default_rng(choose.randrange(2**32))
    kind = choose.choice(("f4", "f4", "f2") if operator in PLUGINS else ("f4", "f2", "f8"))
    N, Q, M, D = (
        choose.choice((0, 1, 2, 3)),
        choose.choice((0, 1, 5, 40)),
        choose.choice((1, 2, 3)),
        choose.choice((1, 4, 5, 32)),
    )
    L = choose.choice((1, 2, 3))
    shapes = [(choose.choice((0, 1, 2, 5, 9)), choose.choice((1, 3, 4, 17))) for _ in range(L)]
    S = sum(H * W for H, W in shapes)

    def floats(*sizes):
        drawn = generator.normal(0.4, 0.8, sizes)
        if choose.random() < 0.3 and drawn.size:
            drawn.flat[choose.randrange(drawn.size)] = choose.choice(ODD_FLOATS)
        with numpy.errstate(over="ignore"):
            return drawn.astype(kind)

    sizes = numpy.array(shapes, choose.choice(("i4", "i8"))).reshape(L, 2)
    if operator in PLUGINS:
        P = choose.choice((0, 1, 4))
        starts = (sizes.prod(1).cumsum() - sizes.prod(1)).astype(choose.choice(("i4", "i8")))
        points = floats(N, Q, M, L, P, 2), floats(N, Q, M, L, P)
        names = "value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights"
        arrays, attributes = (floats(N, S, M, D), sizes, starts, *points), {}
    else:
        counts = [choose.choice((0, 1, 3)) for _ in range(L)]
        T = sum(counts)
        options = choose.choice(("bilinear", "nearest")), choose.choice(("zeros", "border"))
        attributes = dict(zip(("interpolation", "padding_mode"), options, strict=True)) | {"num_points": counts}
        points = floats(N, Q, M, T, 2), floats(N, Q, M, T)
        names = ["value", "spatial_shapes", "points", "weights"]
        if operator[1] != SAMPLE:
            names[2:] = ["references", "points", "weights", "mask"][: 3 + (operator[1] == MASKED)]
            attributes["offset_scale"] = choose.choice((0.5, 1.25, 0.0))
            points = floats(N, Q, choose.choice((1, L)), choose.choice((2, 4))), *points
        mask = (generator.random((N, S)) < 0.3,) if operator[1] == MASKED else ()
        arrays = floats(N, S, M, D), sizes, *points, *mask
    return File(
        operator,
        dict(zip(names, arrays, strict=True)),
        attributes,
        threads=choose.choice((1, 2)),
        shaped=choose.random() < 0.8,
    )


def retype(choose, file):
    """Give an input another type."""
    name = choose.choice(list(file.arrays))
    kind = choose.choice(TYPES)
    with numpy.errstate(all="ignore"):
        file.arrays[name] = file.arrays[name].astype(kind)
    file.faults.append(f"{name} is {kind}")


def resize(choose, file):
    """Give an axis of an input another size."""
    name = choose.choice(list(file.arrays))
    if file.arrays[name].ndim:
        sizes = list(file.arrays[name].shape)
        sizes[choose.randrange(len(sizes))] = choose.choice((0, 1, 2, 3, 6, 33))
        file.arrays[name] = numpy.resize(file.arrays[name], sizes)
        file.faults.append(f"{name} is {sizes}")


def rerank(choose, file):
    """Give an input more axes or fewer."""
    name = choose.choice(list(file.arrays))
    array = file.arrays[name]
    forms = [
        array.reshape(-1),
        array[None],
        array[..., None],
        numpy.resize(array, ()),
        array.reshape((1,) * 20 + array.shape),
    ]
    forms += [array[..., 0]] if array.ndim and array.shape[-1] else []
    file.arrays[name] = choose.choice(forms)
    file.faults.append(f"{name} has {file.arrays[name].ndim} axes")


def odd_numbers(choose, file):
    """Put an odd number among the sizes or starts."""
    names = [name for name in ("spatial_shapes", "level_start_index") if name in file.arrays]
    name = choose.choice(names or list(file.arrays))
    array = file.arrays[name] = file.arrays[name].copy()
    if array.size and array.dtype.kind == "i":
        limits = numpy.iinfo(array.dtype)
        array.flat[choose.randrange(array.size)] = min(max(choose.choice(ODD_INTS), limits.min), limits.max)
    file.faults.append(f"{name} is {array.tolist()}")


def reattribute(choose, file):
    """Give an attribute another type or value, or leave it out."""
    if file.attributes:
        name = choose.choice(list(file.attributes))
        values = [
            None,
            1,
            -3,
            0.5,
            float("nan"),
            "",
            "zeros",
            "x" * 5000,
            [1],
            [2**62, 2**62],
            [-1, 2],
            [0.5, 0.5],
            ["a"],
        ]
        file.attributes[name] = choose.choice(values)
        if file.attributes[name] is None:
            del file.attributes[name]
        file.faults.append(f"{name} is {str(file.attributes.get(name))[:40]}")


def emptied(choose, file):
    """Make an input inside the file, of sizes that may be large but for one that is 0."""
    name = choose.choice([name for name in file.arrays if file.arrays[name].dtype.kind == "f"] or [None])
    if name is not None and file.arrays[name].ndim:
        sizes = [choose.choice((size, size, 2**20, 2**31, 2**40, 2**62)) for size in file.arrays[name].shape]
        sizes[choose.randrange(len(sizes))] = 0
        file.empty[name] = tuple(sizes)
        file.faults.append(f"{name} is empty, {sizes}")


def dropped(choose, file):
    """Leave an input out, in its place or with those behind it."""
    name = choose.choice(list(file.arrays))
    if choose.random() < 0.5 or len(file.arrays) == 1:
        file.arrays = {f"{each} " if each == name else each: array for each, array in file.arrays.items()}
    else:
        file.arrays.pop(name)
    file.faults.append(f"{name} is left out")


def judge(number):
    """Run a file, and fail unless it ends as it may."""
    file = draw(number)
    try:
        output = run(file)
    except FAILURES as error:
        text = str(error)
        assert file.faults, text
        # An error of our node's run is ours. Others, as of nodes that make empty inputs, are ONNX Runtime's own.
        before, _, sentence = text.partition("Status Message: ")
        assert f"running {file.operator[1]} node" not in before or "expected " in sentence, text
        return
    compare(file, torch.from_numpy(output))


def _failures():
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = "Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException", "ModelRequiresCompilation"
    return tuple(getattr(state, name) for name in names if hasattr(state, name))


FAILURES = _failures()


def run(file):
    """Return what ONNX Runtime makes of a file."""
    import onnxruntime
    from onnx import TensorProto, ValueInfoProto, helper

    from deform_attn.export.onnxruntime import register

    (domain, name), nodes, given, feeds = file.operator, [], [], {}
    for key, array in file.arrays.items():
        if key in file.empty:
            given.append(helper.make_tensor_value_info(f"{key}_sizes", TensorProto.INT64, [array.ndim]))
            feeds[f"{key}_sizes"] = numpy.array(file.empty[key])
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            filling = helper.make_tensor("filling", kind, [1], [0])
            nodes.append(helper.make_node("ConstantOfShape", [f"{key}_sizes"], [key], value=filling))
        elif not key.endswith(" "):
            sizes = [None] * array.ndim if file.shaped else None
            given.append(helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(array.dtype), sizes))
            feeds[key] = array
    taken = ["" if key.endswith(" ") else key for key in file.arrays]
    nodes.append(helper.make_node(name, taken, ["out"], domain=domain, **file.attributes))
    graph = helper.make_graph(nodes, "fuzzed", given, [ValueInfoProto(name="out")])
    domains = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, file.threads
    register(options)
    data = helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def compare(file, output):
    """Fail unless the op takes the tensors of a file, too, and its output has the same bits."""
    tensors = {
        name: torch.empty(file.empty[name], dtype=torch.from_numpy(array).dtype)
        if name in file.empty
        else torch.from_numpy(array)
        for name, array in file.arrays.items()
    }
    value, shapes = tensors["value"], [tuple(pair) for pair in tensors["spatial_shapes"].tolist()]
    if file.operator in PLUGINS:
        points, weights = tensors["sampling_locations"], tensors["attention_weights"]
        counts = [points.shape[4]] * len(shapes)
        points, weights = points.flatten(3, 4), weights.flatten(3) if weights.ndim == 5 else weights
        expected = multi_scale_deformable_attention(value, shapes, points, weights, num_points=counts, backend="native")
        expected = expected.reshape(output.shape)
    else:
        options = {"num_points": file.attributes["num_points"], "backend": "native"}
        options |= {name: file.attributes[name] for name in ("interpolation", "padding_mode")}
        if file.operator[1] == SAMPLE:
            expected = multi_scale_deformable_attention(value, shapes, tensors["points"], tensors["weights"], **options)
        else:
            options |= {"offset_scale": file.attributes["offset_scale"], "padding_mask": tensors.get("mask")}
            points = tensors["references"], tensors["points"], tensors["weights"]
            expected = deformable_attention(value, shapes, *points, **options)
    assert output.dtype == expected.dtype, (output.dtype, expected.dtype)
    assert output.shape == expected.shape, (output.shape, expected.shape)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
