"""The contents of a stand-in: the two functions of the op, and of other ops an error that names them."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Never

from deform_attn.stand_ins import ops

FUNCTIONS = (ops.ms_deform_attn_forward, ops.ms_deform_attn_backward)
# mmcv.ops looks for every op of its extension when it is imported, used or not.
_ANSWERS_EVERY_NAME = "mmcv._ext"


def fill(module: ModuleType) -> None:
    """Give an empty module what the extension of its name has."""
    name = module.__name__
    contents: dict[str, Any] = {function.__name__: function for function in FUNCTIONS}
    contents["__doc__"] = f"A stand-in for the compiled extension {name}, by deform_attn."
    contents["__getattr__"] = _any_op(name) if name == _ANSWERS_EVERY_NAME else _no_op(name)
    vars(module).update(contents)


def _any_op(extension: str) -> Callable[[str], Callable[..., Never]]:
    """Return what gives, for every name of an op, a function that raises."""

    def op_called(op: str) -> Callable[..., Never]:
        if op.startswith("_"):
            raise AttributeError(_text(extension, op))

        def missing(*args: Any, **kwargs: Any) -> Never:
            raise NotImplementedError(_text(extension, op))

        missing.__name__ = missing.__qualname__ = op
        return missing

    return op_called


def _no_op(extension: str) -> Callable[[str], Never]:
    def op_called(op: str) -> Never:
        raise AttributeError(_text(extension, op))

    return op_called


def _text(extension: str, op: str) -> str:
    names = " and ".join(function.__name__ for function in FUNCTIONS)
    return (
        f"{extension}.{op}: expected the compiled extension, got deform_attn's stand-in, which has {names} only. "
        f"Install {extension.partition('.')[0]} with its compiled ops."
    )
