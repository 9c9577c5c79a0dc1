"""ONNX Runtime: the operators of the library of CPU kernels, registered with the options of a session."""

from typing import Any

from deform_attn.backends.native import registration
from deform_attn.export.extra import onnx_extra


def library_path() -> str:
    """Return the path of the library with the operators, for ONNX Runtime in any language.

    ONNX Runtime calls its function `RegisterCustomOps` (native/include/deform_attn_onnxruntime.h).

    Raises:
        RuntimeError: the CPU kernels are not built, or do not load on this machine.
    """
    return registration.loaded().path


def register(session_options: Any) -> None:
    """Register the operators with the options of a session, an `onnxruntime.SessionOptions`.

    The session then runs files of the form `native`, and files with the node `MultiscaleDeformableAttnPlugin_TRT` of
    TensorRT or `MMCVMultiScaleDeformableAttention` of mmdeploy. This needs ONNX Runtime 1.17 or newer.

    Example:
        >>> import onnxruntime
        >>> from deform_attn.export.onnxruntime import register
        >>> options = onnxruntime.SessionOptions()
        >>> register(options)
    """
    session_options.register_custom_ops_library(library_path())


def session_options() -> Any:
    """Return an `onnxruntime.SessionOptions` with the operators, or without them where the CPU kernels do not load.

    A session without them refuses a file that needs them, and names the operator.

    Raises:
        ModuleNotFoundError: a package of the extra `onnx` is not installed.
    """
    with onnx_extra():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    if not registration.unavailable_reasons():
        register(options)
    return options
