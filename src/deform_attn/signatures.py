"""Signatures: what a reader sees where a function itself refuses what was passed by position."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def by_name(function: Function) -> Function:
    """Show a function's `*others: Never`, from which it makes an error of ours, as the bare `*` that it stands for.

    The function itself is returned, so that a call costs nothing more.
    """
    signature = inspect.signature(function)
    shown = [each for each in signature.parameters.values() if each.kind is not each.VAR_POSITIONAL]
    function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return function
