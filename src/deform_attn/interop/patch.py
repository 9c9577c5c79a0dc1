"""`patch` and `unpatch`: the deformable attention of a built model runs here, and the model stays what it is."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

from torch import nn

from deform_attn.interop import errors
from deform_attn.interop.report import Report, Row
from deform_attn.interop.rules import Rule, has_other_forward
from deform_attn.interop.transformers.attention import compute_sampling, forward
from deform_attn.interop.transformers.attention_weights import can_tell, telling_forward
from deform_attn.interop.transformers.families import RULES

# What probably is one, whoever wrote it, so that the report can name what no rule knows.
_LIKELY_NAME = re.compile("deformable_?attention|ms_?deform_?attn", re.IGNORECASE)


def patch(model: nn.Module) -> Report:
    """Let `deform_attn.deformable_attention` compute every deformable attention inside `model` that a rule knows.

    Each such module keeps its class, instance, parameters, buffers, state dict and hooks; only its `forward` is set
    on the instance, so that it survives `copy.deepcopy`, pickling and `torch.save`. Attention weights are returned
    where a caller passes `output_attentions=True` or a forward hook looks at them, and are `None` otherwise; where only
    a part of the model around the attention is told, that part's `forward` is set, too. Patching a second time changes
    nothing. The families: docs/interop.md.

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
    replaced, left, modules, rules = [], [], [], []
    inner = _parts_of_known(model)
    for name, module in model.named_modules():
        kind, rule = type(module).__name__, _rule_of(module)
        if rule is not None:
            patched = _is_patched(module)
            reason = "patched before" if patched else _reason_against(rule, module)
            if patched or reason is None:
                rules.append(rule)
            if reason is None:
                replaced.append(Row(name, kind, rule.family, None))
                modules.append((module, rule))
            else:
                left.append(Row(name, kind, rule.family, reason))
        elif module not in inner and _LIKELY_NAME.search(kind):
            ours = type(module).__module__.startswith("deform_attn.")
            left.append(Row(name, kind, None, "it is deform_attn's own" if ours else "no rule knows this class"))
    if not rules:
        candidates = [(row.name, row.kind, row.reason or "") for row in left]
        raise errors.nothing_to_replace(model, [rule.class_name for rule in RULES], candidates)
    for module, rule in modules:
        _set(module, rule)
    tellers = _tellers(model, {name for rule in rules for name in rule.tellers})
    for teller in tellers:
        vars(teller)["forward"] = partial(telling_forward, teller)
    return Report(replaced, left, partial(_restore_all, [*(module for module, _ in modules), *tellers]))


def unpatch(model: nn.Module) -> None:
    """Give every module inside `model` that `patch` changed its own forward back; others stay as they are.

    Args:
        model: a model, or a part of one, patched or not.

    Raises:
        TypeError: `model` is not a module.
        ValueError: another tool has since replaced a forward that `patch` had set; nothing is changed then.

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
    return _is_ours(attribute, forward) and attribute.args[0] is module


def _is_of_another(attribute: Any, function: Callable[..., Any], module: nn.Module) -> bool:
    """Return whether a shallow copy shares this attribute with the original, whose parts it would compute with."""
    return _is_ours(attribute, function) and attribute.args[0] is not module


def _is_ours(attribute: Any, function: Callable[..., Any]) -> TypeGuard[partial[Any]]:
    return isinstance(attribute, partial) and attribute.func is function


def _rule_of(module: nn.Module) -> Rule | None:
    return next((rule for rule in RULES if rule.family_class(module)), None)


def _reason_against(rule: Rule, module: nn.Module) -> str | None:
    if _is_of_another(vars(module).get("forward"), forward, module):
        return None
    return rule.reason_against(module)


def _parts_of_known(model: nn.Module) -> set[nn.Module]:
    """Return the modules inside those that a rule knows, such as the op inside its projections."""
    return {part for module in model.modules() if _rule_of(module) for part in module.modules() if part is not module}


def _tellers(model: nn.Module, class_names: set[str]) -> list[nn.Module]:
    """Return the modules of these classes that do not tell yet, and can."""
    return [
        module
        for module in model.modules()
        if any(cls.__name__ in class_names for cls in type(module).__mro__)
        and can_tell(module)
        and (not has_other_forward(module) or _is_of_another(vars(module)["forward"], telling_forward, module))
    ]


def _set(module: nn.Module, rule: Rule) -> None:
    # Not methods: pickle would look them up by name on the class and find the stock ones.
    instead: dict[str, Any] = {
        "forward": partial(forward, module, rule.family),
        "compute_sampling": partial(compute_sampling, module, rule.family),
    }
    vars(module).update(instead)


def _restore_all(modules: list[nn.Module]) -> None:
    ours = [module for module in modules if _is_ours(vars(module).get("compute_sampling"), compute_sampling)]
    for module in ours:
        if not _is_ours(vars(module).get("forward"), forward):
            raise errors.covered(module)
    for module in ours:
        del module.forward
        del module.compute_sampling
    for module in modules:
        if _is_ours(vars(module).get("forward"), telling_forward):
            del module.forward
