"""ONNX Runtime: the operators of the library of CPU kernels, registered with the options of a session."""

from os import PathLike
from pathlib import Path
from typing import Any

from deform_attn.backends.native import registration
from deform_attn.export.extra import onnx_extra
from deform_attn.export.native import DOMAIN

# What the library has operators for, as MultiscaleDeformableAttnPlugin_TRT and mmdeploy's node (docs/onnx.md).
_PLUGINS = "MultiscaleDeformableAttnPlugin_TRT", "MMCVMultiScaleDeformableAttention"


def library_path() -> str:
    """Return the path of the library with the operators, for ONNX Runtime in any language.

    ONNX Runtime looks for the function `RegisterCustomOps` in it (native/include/deform_attn_onnxruntime.h).

    Raises:
        RuntimeError: the CPU kernels are not built, or do not load on this machine.
    """
    return registration.loaded().path


def register(session_options: Any) -> None:
    """Give the operators to the options of a session, as an `onnxruntime.SessionOptions`.

    The session then runs files of the form `native`, and those with the node `MultiscaleDeformableAttnPlugin_TRT` of
    TensorRT or `MMCVMultiScaleDeformableAttention` of mmdeploy. It takes ONNX Runtime 1.17 or newer.

    Example:
        >>> import onnxruntime
        >>> from deform_attn.export.onnxruntime import register
        >>> options = onnxruntime.SessionOptions()
        >>> register(options)
    """
    session_options.register_custom_ops_library(library_path())


def session_options(path: str | PathLike[str]) -> Any:
    """Return an `onnxruntime.SessionOptions` for a file, with the operators if one of its nodes needs them.

    Raises:
        ModuleNotFoundError: a package of the extra `onnx` is not installed.
        RuntimeError: the file needs the operators, and the CPU kernels are not built or do not load.
    """
    with onnx_extra():
        import onnx
        import onnxruntime

    model = onnx.load(Path(path), load_external_data=False)
    options = onnxruntime.SessionOptions()
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    if any(_needs_operators(node) for body in bodies for node in body):
        register(options)
    return options


def _needs_operators(node: Any) -> bool:
    """Return whether a node, or one in a graph inside it, is one of the library's operators."""
    if node.domain == DOMAIN or node.op_type in _PLUGINS:
        return True
    graphs = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    return any(_needs_operators(inner) for graph in graphs for inner in graph.node)
