"""What an installation must do, whatever installed it: `python -I installed.py native operator detector`.

The names are those of the functions below. `-I` keeps the sources of the folder that it runs in out of the way.
"""

import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

import torch

import deform_attn
from deform_attn.backends.base import SlowBackendWarning


def attend():
    """Call the op between pixels 1 and 4 of the map [[0, 1, 2], [3, 4, 5]], and judge its output and gradient."""
    value = torch.arange(6.0).reshape(1, 6, 1, 1).requires_grad_()
    locations, weights = torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1)
    output = deform_attn.multi_scale_deformable_attention(value, [(2, 3)], locations, weights)
    (gradient,) = torch.autograd.grad(output.sum(), value)
    assert output.tolist() == [[[2.5]]], output
    assert gradient.flatten().tolist() == [0, 0.5, 0, 0, 0.5, 0], gradient


def native():
    """Run the op with the CPU kernels."""
    assert deform_attn.explain().reasons["native"] == [], deform_attn.explain()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowBackendWarning)
        attend()


def pure():
    """Run the op where there are no CPU kernels: it warns, and `explain` says why."""
    (reason,) = deform_attn.explain().reasons["native"]
    assert "not built" in reason, reason
    assert "C++ compiler" in reason, reason
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attend()
        attend()
    (warning,) = [each.message for each in caught if each.category is SlowBackendWarning]
    assert reason in str(warning), warning


def operator():
    """Run a file of one node in ONNX Runtime, which takes the operator from the library."""
    import numpy
    import onnxruntime
    from onnx import TensorProto, helper

    from deform_attn.export.onnxruntime import register

    # The middle of the map, between its pixels 1 and 4, as in `attend`.
    given = {
        "value": numpy.arange(6, dtype=numpy.float32).reshape(1, 6, 1, 1),
        "shapes": numpy.array([[2, 3]]),
        "points": numpy.full((1, 1, 1, 1, 2), 0.5, dtype=numpy.float32),
        "weights": numpy.ones((1, 1, 1, 1), dtype=numpy.float32),
    }
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in given.items()
    ]
    node = helper.make_node(
        "MultiScaleDeformableAttention",
        list(given),
        ["out"],
        domain="deform_attn",
        num_points=[1],
        interpolation="bilinear",
        padding_mode="zeros",
    )
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one_node", inputs, [output])
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("deform_attn", 1)]
    file = helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()
    options = onnxruntime.SessionOptions()
    register(options)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, given)
    assert output.tolist() == [[[2.5]]], output


def detector():
    """Train the detector of the demo for an epoch of a few scenes, and draw what it finds."""
    from deform_attn.detr.demo import run_demo

    with tempfile.TemporaryDirectory() as folder:
        result = run_demo(Path(folder, "demo"), epochs=1, scenes=4, test_scenes=2)
        assert all(file.exists() for file in result.files), result.files


def main(names):
    """Run the functions of these names."""
    checks = {check.__name__: check for check in (native, pure, operator, detector)}
    for name in names:
        checks[name]()
        print(f"deform-attn {metadata.version('deform-attn')}, torch {torch.__version__}: {name} works")


if __name__ == "__main__":
    main(sys.argv[1:])
