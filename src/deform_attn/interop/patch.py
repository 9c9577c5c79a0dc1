"""`patch` and `unpatch`: the deformable attention of a built model runs here, and the model stays what it is."""

import re
from functools import partial
from typing import Any, TypeGuard

from torch import nn

from deform_attn.interop import errors
from deform_attn.interop.report import Report, Row
from deform_attn.interop.rules import Rule
from deform_attn.interop.table import RULES

# What probably is one, whoever wrote it, so that the report can name what no rule knows.
_LIKELY_NAME = re.compile("deformable_?attention|ms_?deform_?attn", re.IGNORECASE)


def patch(model: nn.Module) -> Report:
    """Let `deform_attn.deformable_attention` compute every deformable attention inside `model` that a rule knows.

    Each such module keeps its class, instance, parameters, buffers, state dict and hooks; only its `forward` is set
    on the instance, so that it survives `copy.deepcopy`, pickling and `torch.save`. Attention weights are returned
    where a caller passes `output_attentions=True` or a forward hook looks at them, and are `None` otherwise. Patching
    a second time changes nothing. The families: docs/interop.md.

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
    replaced, left, modules = [], [], []
    inner = _parts_of_known(model)
    patched = False
    for name, module in model.named_modules():
        kind, rule = type(module).__name__, _rule_of(module)
        if rule is not None:
            reason = "patched before" if _is_patched(module) else _reason_against(rule, module)
            patched |= _is_patched(module)
            if reason is None:
                replaced.append(Row(name, kind, rule.family, None))
                modules.append((module, rule))
            else:
                left.append(Row(name, kind, rule.family, reason))
        elif module not in inner and _LIKELY_NAME.search(kind):
            ours = type(module).__module__.startswith("deform_attn.")
            left.append(Row(name, kind, None, "it is deform_attn's own" if ours else "no rule knows this class"))
    if not replaced and not patched:
        candidates = [(row.name, row.kind, row.reason or "") for row in left]
        raise errors.nothing_to_replace(model, [rule.class_name for rule in RULES], candidates)
    for module, rule in modules:
        _set(module, rule)
    return Report(replaced, left, lambda: _restore_all([module for module, _ in modules]))


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
    forward = vars(module).get("forward")
    # A shallow copy shares the forward of the original, which would compute with that one's parts.
    return _is_ours(forward, "forward") and forward.args[0] is module


def _is_ours(attribute: Any, name: str) -> TypeGuard[partial[Any]]:
    return isinstance(attribute, partial) and any(attribute.func is getattr(rule.form, name) for rule in RULES)


def _rule_of(module: nn.Module) -> Rule | None:
    return next((rule for rule in RULES if rule.family_class(module)), None)


def _reason_against(rule: Rule, module: nn.Module) -> str | None:
    if _is_ours(vars(module).get("forward"), "forward"):  # a shallow copy's
        return None
    return rule.reason_against(module)


def _parts_of_known(model: nn.Module) -> set[nn.Module]:
    """Return the modules inside those that a rule knows, such as the op inside its projections."""
    return {part for module in model.modules() if _rule_of(module) for part in module.modules() if part is not module}


def _set(module: nn.Module, rule: Rule) -> None:
    # Not a method: pickle would look that up by name on the class and find the stock one.
    forward: Any = partial(rule.form.forward, module)
    compute_sampling: Any = partial(rule.form.compute_sampling, module)
    module.forward, module.compute_sampling = forward, compute_sampling


def _restore_all(modules: list[nn.Module]) -> None:
    ours = [module for module in modules if _is_ours(vars(module).get("compute_sampling"), "compute_sampling")]
    for module in ours:
        if not _is_ours(vars(module).get("forward"), "forward"):
            raise errors.covered(module)
    for module in ours:
        del module.forward
        del module.compute_sampling
