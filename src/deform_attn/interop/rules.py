"""Rules: how the deformable attention of one family is recognised, and what runs in its place."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Form:
    """One form of attention module, which several families may share.

    `forward(module, ...)` and `compute_sampling(module, ...)` take the arguments of the stock forward; the second
    returns what `deform_attn.record` asks for. `attributes` and `arguments` are those that they rely on.
    `reason_against(module)` may tell what else speaks against one module.
    """

    attributes: tuple[str, ...]
    arguments: tuple[str, ...]
    forward: Callable[..., Any]
    compute_sampling: Callable[..., Any]
    reason_against: Callable[[Any], str | None] = lambda module: None


@dataclass(frozen=True)
class Rule:
    """The family's name, the class of its deformable attention, and that class's form."""

    family: str
    class_name: str
    form: Form

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
        parameters = inspect.signature(cls.forward).parameters
        if missing := [name for name in self.form.arguments if name not in parameters]:
            return f"its forward does not take {', '.join(missing)}, as that in transformers >= 5 does"
        if "forward" in vars(module):
            return "another tool has replaced its forward"
        if has_hooks(getattr(module, "attn", None)):
            return "the op inside, attn, has hooks, which would not be called"
        return self.form.reason_against(module)


def has_hooks(module: Any) -> bool:
    """Return whether calling `module` would call a hook, too."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return isinstance(module, nn.Module) and any(getattr(module, name) for name in names)
