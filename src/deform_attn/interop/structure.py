"""Structure: how a module of another project is recognised, and why one that was recognised is left as it is."""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Structure:
    """The structure of one family's module: the family's name, the name of its class, and what that class has.

    Several families give their class the same name. Each of the `marks` of a family is an attribute of the module or an
    argument of its forward, and none of its `others_marks` is. `arguments` are those of the stock forward in their
    order; those in `optional` are not compared. `attributes` are what our forward relies on. `reason_against_state` may
    return what else speaks against one module.
    """

    family: str
    class_name: str
    marks: tuple[str, ...]
    others_marks: tuple[str, ...]
    arguments: tuple[str, ...]
    attributes: tuple[str, ...]
    optional: tuple[str, ...] = ()
    reason_against_state: Callable[[Any], str | None] = lambda module: None
    tellers: tuple[str, ...] = ()

    def family_class(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the class of this family among those of the module, or None."""
        cls = class_named(module, self.class_name)
        if cls is None:
            return None
        arguments = arguments_of(cls.forward)

        def has(name: str) -> bool:
            return name in arguments or has_attribute(module, name)

        return cls if all(map(has, self.marks)) and not any(map(has, self.others_marks)) else None

    def reason_against(self, module: nn.Module) -> str | None:
        """Return why a module of this family cannot be replaced, or None if it can."""
        cls = self.family_class(module)
        source = f"of {self.family}"
        return (
            reason_against_class(module, cls, self.class_name, self.attributes, source)
            or (cls and reason_against_arguments(cls.forward, self.arguments, source, self.optional))
            or reason_against_tools(module)
            or self.reason_against_state(module)
        )


def class_named(module: nn.Module, name: str) -> type[nn.Module] | None:
    """Return the first class called `name` among those of a module, or None."""
    return next((cls for cls in type(module).__mro__ if cls.__name__ == name), None)


def has_attribute(module: nn.Module, name: str) -> bool:
    """Return whether a module or its class has an attribute, without running a `__getattr__` of its own."""
    state = vars(module)
    places = (state, *(state.get(place, ()) for place in ("_parameters", "_buffers", "_modules")))
    return any(name in place for place in places) or any(name in vars(cls) for cls in type(module).__mro__)


def arguments_of(forward: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments of a class's forward, without the module and what else comes by name."""
    parameters = inspect.signature(forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD][1:]


def reason_against_class(
    module: nn.Module, cls: type[nn.Module] | None, class_name: str, attributes: Sequence[str], source: str
) -> str | None:
    """Return why a module runs another forward than that of `cls`, or lacks what ours relies on."""
    if cls is None or type(module).forward is not cls.forward:
        return f"its class overrides the forward of {class_name}"
    if missing := [name for name in attributes if not has_attribute(module, name)]:
        return f"it lacks {', '.join(missing)}, which the class {source} has"
    return None


def reason_against_arguments(
    forward: Callable[..., Any], arguments: Sequence[str], source: str, optional: Collection[str] = ()
) -> str | None:
    """Return how the arguments of a class's forward differ from `arguments`, leaving out those in `optional`."""
    expected, actual = (
        [name for name in names if name not in optional] for names in (arguments, arguments_of(forward))
    )
    if missing := [name for name in expected if name not in actual]:
        return f"its forward does not take {', '.join(missing)}, as that {source} does"
    if new := [name for name in actual if name not in expected]:
        return f"its forward takes {', '.join(new)}, which that {source} does not"
    return None if actual == expected else f"its forward takes its arguments in another order than that {source}"


def reason_against_tools(module: nn.Module) -> str | None:
    """Return that another tool has replaced a module's forward, if one has."""
    return "another tool has replaced its forward" if has_other_forward(module) else None


def reason_against_core(module: Any, name: str) -> str | None:
    """Return that the function which a module keeps as its core is not the one called `name`, if it is not."""
    core = module.ms_deformable_attn_core
    core = getattr(core, "func", core)  # some keep a partial of it
    return None if getattr(core, "__name__", None) == name else f"its ms_deformable_attn_core is not {name}"


def has_other_forward(module: nn.Module) -> bool:
    """Return whether calling `module` runs another forward than that of its class."""
    forward = vars(module).get("forward")
    own = getattr(forward, "__func__", None) is type(module).forward and getattr(forward, "__self__", None) is module
    return forward is not None and not own  # accelerate leaves the own one behind when it goes


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling `module` would call a hook, too."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)
