"""Arguments of the modules that were judged before: those of the same kind are not judged again."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from deform_attn.backends import remembered
from deform_attn.backends.kept import Kept

Result = TypeVar("Result")

_judged: Kept[remembered.Key, Any] = Kept()


def once(judge: Callable[[], Result], tensors: Sequence[Any], spatial_shapes: Any, *sizes: int | str) -> Result:
    """Return what `judge()` returned for such tensors, sizes of maps, and sizes of a module; or call it.

    What it judges and returns must follow from these, but for a dtype that only autocast allows: calls whose tensors
    differ in their dtypes are judged each time.
    """
    key = remembered.key(None, tensors, spatial_shapes, None, *sizes)
    if key is None:
        return judge()
    result = _judged.get(key)
    if result is None:
        result = judge()
        if len({tensor.dtype for tensor in tensors if tensor is not None}) == 1:
            _judged.keep(key, result)
    return result
