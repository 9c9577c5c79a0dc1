"""A backend: its name, what it can run, and the two functions that run it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs


@dataclass(frozen=True)
class Backend:
    """One way to compute both entry points. Its functions receive judged inputs and trust them.

    `unavailable_reasons` says why it cannot run on this machine at all, `unsupported_reasons` why it cannot run one
    call; an empty list means that it can. The latter may look at metadata only (device, dtype, shapes, options), so
    that the choice can be made while tracing.
    """

    name: str
    summary: str
    unavailable_reasons: Callable[[], list[str]]
    unsupported_reasons: Callable[[Inputs], list[str]]
    sample: Callable[[SamplingInputs], Tensor]
    attend: Callable[[AttentionInputs], Tensor]


class SlowBackendWarning(UserWarning):
    """The fast backend for this device is not available; `deform_attn.explain()` says why."""
