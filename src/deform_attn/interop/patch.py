"""`patch` and `unpatch`: the deformable attention of a built model runs here, and the model stays what it is."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

from torch import nn

from deform_attn.interop import errors
from deform_attn.interop.families import FAMILIES, Family
from deform_attn.interop.report import Report, Row
from deform_attn.interop.structure import has_other_forward
from deform_attn.interop.transformers.attention_weights import can_tell, telling_forward

_FORWARDS = {family.forward for family in FAMILIES}
_SAMPLINGS = {family.compute_sampling for family in FAMILIES}
_TELLING = {telling_forward}
# What probably is one, whoever wrote it, so that the report can name what no rule knows.
_LIKELY_NAME = re.compile("deformable_?attention|ms_?deform_?attn", re.IGNORECASE)


def patch(model: nn.Module) -> Report:
    """Let `deform_attn.deformable_attention` compute every deformable attention inside `model` that a rule knows.

    Each such module keeps its class, instance, parameters, buffers, state dict and hooks. Only its `forward` is set on
    the instance, so that it survives `copy.deepcopy`, pickling and `torch.save`. Attention weights are returned where a
    caller passes `output_attentions=True` or a forward hook looks at them. Otherwise they are `None`. In some models
    only a part around the attention knows whether they are wanted; that part's `forward` is set, too. Patching a second
    time changes nothing. The page "Model families" of the documentation lists what it knows.

    Args:
        model: a built model, or a part of one; wrappers such as DistributedDataParallel are looked into.

    Returns:
        A report with `replaced` and `left`; `print` gives a table. Used as a context manager, it undoes at the
        end of the block what this call replaced.

    Raises:
        TypeError: `model` is not a module.
        ValueError: there is nothing to replace, or `model` is a `DataParallel`; the message says what was looked for.

    Example:
        >>> from deform_attn import patch
        >>> from transformers import DeformableDetrConfig
        >>> from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoderLayer
        >>> layer = DeformableDetrEncoderLayer(DeformableDetrConfig(d_model=32))
        >>> with patch(layer) as report:
        ...     print(report)
        1 of 1 deformable attentions replaced
        module     class                                        rule             verdict
        self_attn  DeformableDetrMultiscaleDeformableAttention  deformable_detr  replaced
    """
    errors.a_module(model)
    replaced, left, modules, known = [], [], [], []
    beside = _beside_known(model)
    for name, module in model.named_modules():
        kind, family = type(module).__name__, _family_of(module)
        if family is not None:
            patched = _is_patched(module)
            reason = "patched before" if patched else _reason_against(family, module)
            if patched or reason is None:
                known.append(family)
            if reason is None:
                replaced.append(Row(name, kind, family.name, None))
                modules.append((module, family))
            else:
                left.append(Row(name, kind, family.name, reason))
        elif module not in beside and _LIKELY_NAME.search(kind):
            left.append(
                Row(
                    name,
                    kind,
                    None,
                    "it is deform_attn's own and needs no patch" if _is_own(module) else "no rule knows this class",
                )
            )
    if not known:
        candidates = [(row.name, row.kind, row.reason or "") for row in left]
        looked_for = dict.fromkeys(family.structure.class_name for family in FAMILIES)
        raise errors.nothing_to_replace(model, list(looked_for), candidates)
    for module, family in modules:
        _set(module, family)
    tellers = _tellers(model, {name for family in known for name in family.structure.tellers})
    for teller in tellers:
        vars(teller)["forward"] = partial(telling_forward, teller)
    return Report(replaced, left, partial(_restore_all, [*(module for module, _ in modules), *tellers]))


def unpatch(model: nn.Module) -> None:
    """Give every module inside `model` that `patch` changed its own forward back; others stay as they are.

    Args:
        model: a model, or a part of one, patched or not.

    Raises:
        TypeError: `model` is not a module.
        ValueError: another tool has since replaced a forward that `patch` had set; the model stays as it is.

    Example:
        >>> from deform_attn import patch, unpatch
        >>> from transformers import DeformableDetrConfig
        >>> from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoderLayer
        >>> layer = DeformableDetrEncoderLayer(DeformableDetrConfig(d_model=32))
        >>> report = patch(layer)
        >>> unpatch(layer)
        >>> "forward" in vars(layer.self_attn)
        False
    """
    errors.a_module(model)
    _restore_all(list(model.modules()))


def _is_patched(module: nn.Module) -> bool:
    """Return whether calling `module` runs the forward that `patch` has set on it."""
    attribute = vars(module).get("forward")
    return _is_ours(attribute, _FORWARDS) and attribute.args[0] is module


def _is_of_another(attribute: Any, functions: set[Callable[..., Any]], module: nn.Module) -> bool:
    """Return whether a shallow copy shares this attribute with the original, whose parts it would compute with."""
    return _is_ours(attribute, functions) and attribute.args[0] is not module


def _is_ours(attribute: Any, functions: set[Callable[..., Any]]) -> TypeGuard[partial[Any]]:
    return isinstance(attribute, partial) and any(attribute.func is function for function in functions)


def _family_of(module: nn.Module) -> Family | None:
    if _is_own(module):
        return None
    return next((family for family in FAMILIES if family.structure.family_class(module)), None)


def _is_own(module: nn.Module) -> bool:
    """Return whether a module computes with the op already, as the stand-ins' do, which other families' rules fit."""
    return any(cls.__module__.startswith("deform_attn.") for cls in type(module).__mro__)


def _reason_against(family: Family, module: nn.Module) -> str | None:
    if _is_of_another(vars(module).get("forward"), _FORWARDS, module):
        return None
    return family.structure.reason_against(module)


def _beside_known(model: nn.Module) -> set[nn.Module]:
    """Return the modules inside those that a rule knows, such as the op inside its projections, and around them."""
    known = {module for module in model.modules() if _family_of(module)}
    inside = {part for module in known for part in module.modules() if part is not module}
    return inside | {
        module for module in model.modules() if module not in known and not known.isdisjoint(module.modules())
    }


def _tellers(model: nn.Module, class_names: set[str]) -> list[nn.Module]:
    """Return the modules of these classes that do not tell yet, and can."""
    return [
        module
        for module in model.modules()
        if any(cls.__name__ in class_names for cls in type(module).__mro__)
        and can_tell(module)
        and (not has_other_forward(module) or _is_of_another(vars(module)["forward"], _TELLING, module))
    ]


def _set(module: nn.Module, family: Family) -> None:
    # Not methods: pickle would look them up by name on the class and find the stock ones.
    instead: dict[str, Any] = {
        "forward": partial(family.forward, module, *family.first),
        "compute_sampling": partial(family.compute_sampling, module, *family.first),
    }
    vars(module).update(instead)


def _restore_all(modules: list[nn.Module]) -> None:
    ours = [module for module in modules if _is_ours(vars(module).get("compute_sampling"), _SAMPLINGS)]
    for module in ours:
        if not _is_ours(vars(module).get("forward"), _FORWARDS):
            raise errors.covered(module)
    for module in ours:
        del module.forward
        del module.compute_sampling
    for module in modules:
        if _is_ours(vars(module).get("forward"), _TELLING):
            del module.forward
