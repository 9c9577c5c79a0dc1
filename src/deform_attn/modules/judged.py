"""Arguments of the modules that were judged before: those of the same kind are not judged again."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from deform_attn.backends.kinds import Kinds, is_plain, kind_of

Result = TypeVar("Result")

_judged: Kinds[Any] = Kinds()


def once(judge: Callable[[], Result], tensors: Sequence[Any], spatial_shapes: Any, *sizes: int | str) -> Result:
    """Return what `judge()` returned for such tensors, sizes of maps, and sizes of a module; or call it.

    What it judges and returns must follow from these, but for a dtype that only autocast allows: calls whose tensors
    differ in their dtypes are judged each time.
    """
    missing = " ".join([str(i) for i, tensor in enumerate(tensors) if tensor is None])
    kind = kind_of(None, tensors, 0, spatial_shapes, None, missing, *sizes)
    if kind is None:
        return judge()
    key, given = kind
    kind = (*key, given[-1].shape), given  # that of the last map
    result: Result | None = _judged.find(kind)
    if result is None:
        result = judge()
        if is_plain(kind) and len({tensor.dtype for tensor in given}) == 1:
            _judged.add(kind, result)
    return result
