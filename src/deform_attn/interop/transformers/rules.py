"""Rules: how the deformable attention of one family in transformers is recognised, and how it is to be read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from deform_attn.interop.structure import (
    class_named,
    reason_against_arguments,
    reason_against_class,
    reason_against_tools,
)

OUTPUT_ATTENTIONS = "output_attentions"
_SOURCE = "in transformers >= 5"


class Layout(NamedTuple):
    """How a module looks: the number of points of each level, their scale beside boxes, and "default" (bilinear) or
    "discrete" sampling.
    """

    num_points: Sequence[int]
    offset_scale: float = 0.5
    method: str = "default"


@dataclass(frozen=True)
class Form:
    """One form of attention module, which several families may share.

    `arguments` are those of the stock forward in their order, of which it may lack those in `optional`; `attributes`
    are those of the module that ours relies on.
    `layout(module)` tells how the module looks. `padding_is_true` is whether true in its mask is padding, rather than
    what is valid; `flat_weights` whether its weights have one axis for the points of all levels.
    `reason_against(module)` may tell what else speaks against one module.
    """

    arguments: tuple[str, ...]
    attributes: tuple[str, ...]
    layout: Callable[[Any], Layout]
    optional: tuple[str, ...] = (OUTPUT_ATTENTIONS,)
    padding_is_true: bool = False
    flat_weights: bool = False
    reason_against: Callable[[Any], str | None] = lambda module: None


@dataclass(frozen=True)
class Rule:
    """The family's name, the class of its deformable attention, and that class's form.

    `tellers` are the classes of those parts of the model that are told whether attention weights are wanted, where the
    attention itself is not. In versions of transformers in which they take no `output_attentions` they are not told.
    """

    family: str
    class_name: str
    form: Form
    tellers: tuple[str, ...] = ()

    def family_class(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the class of this rule among those of the module, or None."""
        return class_named(module, self.class_name)

    def reason_against(self, module: nn.Module) -> str | None:
        """Return why a module of this rule's class cannot be replaced, or None if it can."""
        cls = self.family_class(module)
        return (
            reason_against_class(module, cls, self.class_name, self.form.attributes, _SOURCE)
            or (cls and self._reason_against_arguments(cls))
            or reason_against_tools(module)
            or self.form.reason_against(module)
        )

    def _reason_against_arguments(self, cls: type[nn.Module]) -> str | None:
        # Some families of a form take output_attentions by name, others among what else comes.
        return reason_against_arguments(cls.forward, self.form.arguments, _SOURCE, self.form.optional)
