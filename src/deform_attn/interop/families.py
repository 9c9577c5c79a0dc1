"""The families that `patch` knows: one row each, those of transformers from a table of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from deform_attn.interop import detrex, dfine, groundingdino, mmcv, original, rfdetr, rtdetr, ultralytics
from deform_attn.interop.transformers import attention
from deform_attn.interop.transformers.families import RULES


class Known(Protocol):
    """How the modules of a family are recognised, and why one of them is left as it is.

    `tellers` are the classes of those parts of the model that are told whether attention weights are wanted, where the
    attention itself is not.
    """

    @property
    def family(self) -> str:
        """The family's name."""

    @property
    def class_name(self) -> str:
        """The name of the class of its deformable attention."""

    @property
    def tellers(self) -> tuple[str, ...]:
        """The names of the classes that tell, most often none."""

    def family_class(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the class of this family among those of a module, or None."""

    def reason_against(self, module: nn.Module) -> str | None:
        """Return why a module of this family cannot be replaced, or None if it can."""


@dataclass(frozen=True)
class Family:
    """How a family's modules are known, and the functions that `patch` sets on them.

    Both take the module, then what is in `first`, then the arguments of the stock forward. They are found by name when
    a patched model is loaded, and so must be functions of a module.
    """

    structure: Known
    forward: Callable[..., Any]
    compute_sampling: Callable[..., Any]
    first: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The family's name."""
        return self.structure.family


FAMILIES: tuple[Family, ...] = (
    *(Family(rule, attention.forward, attention.compute_sampling, (rule.family,)) for rule in RULES),
    Family(original.STRUCTURE, original.forward, original.compute_sampling),
    Family(mmcv.STRUCTURE, mmcv.forward, mmcv.compute_sampling),
    Family(detrex.STRUCTURE, mmcv.forward, mmcv.compute_sampling),
    Family(groundingdino.STRUCTURE, mmcv.attend, mmcv.sampling),
    Family(ultralytics.STRUCTURE, ultralytics.forward, ultralytics.compute_sampling),
    Family(rfdetr.STRUCTURE, rfdetr.forward, rfdetr.compute_sampling),
    Family(rtdetr.STRUCTURE, rtdetr.forward, rtdetr.compute_sampling),
    Family(dfine.STRUCTURE, dfine.forward, dfine.compute_sampling),
)
