"""The CPU kernels as those of the ops: registered by the library itself, or else from Python."""

from deform_attn import torch_names
from deform_attn.backends.native import library, rows
from deform_attn.checks import Inputs
from deform_attn.torch_ops import schema

_library, _reasons = library.load()
if torch_names.OPS.missing:
    _library, _reasons = None, [torch_names.OPS.verdict]
elif _library is not None and sorted(_library.torch_schemas) != sorted(schema.schemas()):
    _library, _reasons = None, ["the CPU kernels are of another version of deform-attn. Install deform-attn again"]

_in_the_way = None if _library is None else _library.register()
if _library is not None and _in_the_way is not None:
    for _op in schema.OPS:
        schema.register(_op, *rows.kernels(_library, _op), "CPU")
    for _op in (schema.SAMPLE, schema.ATTEND):
        schema.register_twin(_op, rows.twin(_library, _op), "CPU")


def unavailable_reasons() -> list[str]:
    """Return why the kernels cannot be called on this machine; an empty list means that they can."""
    return list(_reasons)


def notes(_inputs: Inputs) -> list[str]:
    """Return what `explain` says of how the kernels are registered."""
    if _in_the_way is None:
        return []
    return [f"the CPU kernels are called through Python, which costs more time a call: {_in_the_way}"]


def loaded() -> library.NativeLibrary:
    """Return the library of kernels."""
    if _library is None:
        raise RuntimeError("deform_attn: " + "; ".join(_reasons))
    return _library
