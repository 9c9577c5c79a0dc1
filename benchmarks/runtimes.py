"""Runtimes of ONNX files: how each opens a file for a number of threads, in float32."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from deform_attn.export.onnxruntime import register

Run = Callable[..., list[Tensor]]  # from the tensors of the inputs to those of the outputs, in the file's order


def onnxruntime(path: str | Path, threads: int, *, ours: bool = False) -> Run:
    """Return the call of a session of ONNX Runtime, which knows our operators where `ours` is true."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if ours:
        register(options)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its idle threads would otherwise keep a core busy while the next rival is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*tensors: Tensor) -> list[Tensor]:
        arrays = dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True))
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run


def openvino(path: str | Path, threads: int) -> Run:
    """Return the call of a model that OpenVINO has compiled."""
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(str(path)), "CPU", options).create_infer_request()

    def run(*tensors: Tensor) -> list[Tensor]:
        arrays = [tensor.numpy() for tensor in tensors]
        results = request.infer(arrays, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(results[i]) for i in range(len(results))]

    return run


RUNTIMES: Mapping[str, Callable[[str | Path, int], Run]] = {"ONNX Runtime": onnxruntime, "OpenVINO": openvino}
