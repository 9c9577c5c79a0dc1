"""The errors of `patch`, `unpatch` and a patched module: which argument, what was expected, what came, and one fix."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def a_module(model: Any) -> None:
    """Judge that `model` can be patched at all."""
    if not isinstance(model, nn.Module):
        fix = "Pass the built model, e.g. what AutoModel.from_pretrained returns."
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}. {fix}")
    if isinstance(model, nn.DataParallel):
        # Its replicas share the instance's attributes, and with them a forward that is bound to the first device.
        fix = "Use torch.nn.parallel.DistributedDataParallel, or one process a device."
        raise ValueError(f"model: expected a module that calls its own parts, got DataParallel. {fix}")


def nothing_to_replace(model: nn.Module, looked_for: Sequence[str], left: Sequence[tuple[str, str, str]]) -> ValueError:
    """Return the error where nothing can be replaced; `left` has name, class and reason of the candidates."""
    expected = "model: expected a model with a deformable attention that a rule knows"
    known = f"Known classes: {', '.join(looked_for)}."  # after what to do, since there are many
    if not left:
        fix = "If yours has another name, call deform_attn.deformable_attention in its forward."
        return ValueError(f"{expected}, got {type(model).__name__} without one. {fix} {known}")
    reasons = "; ".join(f"{name or '(the model itself)'} ({kind}): {reason}" for name, kind, reason in left[:3])
    more = f"; and {len(left) - 3} more" if len(left) > 3 else ""
    fix = "Remove what stands in the way, and patch before other tools do."
    return ValueError(f"{expected}, got {type(model).__name__} with {reasons}{more}. {fix} {known}")


def covered(module: nn.Module) -> ValueError:
    """Return the error for a patched module whose forward another tool has replaced since."""
    fix = "Remove that other change first (for accelerate: remove_hook_from_module), then unpatch."
    kind = type(module).__name__
    return ValueError(f"model: expected each forward that patch set, got another one on a {kind}. {fix}")


def few_enough(args: Sequence[Any], names: Sequence[str]) -> None:
    """Judge that a patched module got no more arguments by position than its stock forward has names for."""
    if len(args) > len(names):
        fix = f"They are {', '.join(names)}."
        raise TypeError(f"arguments: expected at most {len(names)} by position, got {len(args)}. {fix}")
