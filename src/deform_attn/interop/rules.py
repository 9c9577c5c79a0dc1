"""Rules: how the deformable attention of one family is recognised, and how it is to be read."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

OUTPUT_ATTENTIONS = "output_attentions"


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

    `arguments` are those of the stock forward in their order, `attributes` those of the module that ours relies on.
    `layout(module)` tells how the module looks. `padding_is_true` is whether true in its mask is padding, rather than
    what is valid; `flat_weights` whether its weights have one axis for the points of all levels.
    `reason_against(module)` may tell what else speaks against one module.
    """

    arguments: tuple[str, ...]
    attributes: tuple[str, ...]
    layout: Callable[[Any], Layout]
    padding_is_true: bool = False
    flat_weights: bool = False
    reason_against: Callable[[Any], str | None] = lambda module: None


@dataclass(frozen=True)
class Rule:
    """The family's name, the class of its deformable attention, and that class's form.

    `tellers` are the classes of those parts of the model that are told whether attention weights are wanted, where the
    attention itself is not.
    """

    family: str
    class_name: str
    form: Form
    tellers: tuple[str, ...] = ()

    def family_class(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the class of this rule among those of the module, or None."""
        return next((cls for cls in type(module).__mro__ if cls.__name__ == self.class_name), None)

    def reason_against(self, module: nn.Module) -> str | None:
        """Return why a module of this rule's class cannot be replaced, or None if it can."""
        cls = self.family_class(module)
        if cls is None or type(module).forward is not cls.forward:
            return f"its class overrides the forward of {self.class_name}"
        if missing := [name for name in self.form.attributes if not hasattr(module, name)]:
            return f"it lacks {', '.join(missing)}, which the class in transformers >= 5 has"
        if reason := self._reason_against_signature(cls.forward):
            return reason
        if has_other_forward(module):
            return "another tool has replaced its forward"
        return self.form.reason_against(module)

    def _reason_against_signature(self, forward: Callable[..., Any]) -> str | None:
        parameters = inspect.signature(forward).parameters.values()
        named = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD][1:]
        # Some families of a form take this one by name, others among what else comes.
        expected, actual = (
            [name for name in names if name != OUTPUT_ATTENTIONS] for names in (self.form.arguments, named)
        )
        if missing := [name for name in expected if name not in actual]:
            return f"its forward does not take {', '.join(missing)}, as that in transformers >= 5 does"
        if new := [name for name in actual if name not in expected]:
            return f"its forward takes {', '.join(new)}, which that in transformers >= 5 does not"
        return None if actual == expected else "its forward takes its arguments in another order than transformers >= 5"


def has_other_forward(module: nn.Module) -> bool:
    """Return whether calling `module` runs another forward than that of its class."""
    forward = vars(module).get("forward")
    own = getattr(forward, "__func__", None) is type(module).forward and getattr(forward, "__self__", None) is module
    return forward is not None and not own  # accelerate leaves the own one behind when it goes


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling `module` would call a hook, too."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)
