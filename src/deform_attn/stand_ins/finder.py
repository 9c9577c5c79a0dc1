"""The finder: Python asks it for a module that nothing else knows, and for the name of an extension it has a stand-in.

It is the last one of `sys.meta_path`. So an extension that is installed is imported, and one that fails to import fails
with its own error. Python reads this file at its start below the runner (at_start/): it imports nothing but the
standard library, and all that the stand-ins need only when one is imported.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NAMES = ("MultiScaleDeformableAttention", "groundingdino._C", "detrex._C", "mmcv._ext")


class StandInWarning(UserWarning):
    """A module of deform_attn stands in for a compiled extension that is not installed."""


class Finder(MetaPathFinder, Loader):
    """What `sys.meta_path` holds; it makes the modules that it finds, too."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a stand-in, or None for any other module."""
        return ModuleSpec(fullname, self, origin="deform_attn.stand_ins") if fullname in NAMES else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module, and warn: once in each process, since a module is imported once."""
        from deform_attn.stand_ins import extension

        extension.fill(module)
        message = f"{module.__name__}: no compiled extension of this name is installed; deform_attn stands in for it."
        warnings.warn(message, StandInWarning, stacklevel=2)


_FINDER = Finder()


def install() -> None:
    """Put the finder behind all others, once."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
