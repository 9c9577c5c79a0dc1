"""A backend: its name, what it can run, and the two functions that run it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deform_attn import torch_names
from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs

# As the entry points take them: value, references, offsets, logits, mask, or value, locations, weights.
Tensors = Sequence[Tensor | None]


class Direct(Protocol):
    """A remembered call without its tensors, which takes them as the entry point does.

    Either function returns None where the op has to see the call: its tensors are not plain, or somebody is watching.
    """

    def forward(self, tensors: Tensors) -> Tensor | None:
        """Return the output, of which autograd knows nothing."""

    def backward(self, grad_output: Tensor, tensors: Tensors, wanted: Sequence[bool]) -> Sequence[Tensor | None] | None:
        """Return the gradients of all tensors, None where not wanted."""


@dataclass(frozen=True)
class Backend:
    """One way to compute both entry points. Its functions receive judged inputs and trust them.

    `unavailable_reasons` says why it cannot run on this machine at all, `unsupported_reasons` why it cannot run one
    call; an empty list means that it can. The latter may look at metadata only (device, dtype, shapes, options), so
    that the choice can be made while tracing. `is_registered` says that its kernels are those of the ops on its device,
    and of the ops' twins, so that its calls can be remembered (remembered.py). A call that is `only_by_name` is never
    left to it otherwise, nor remembered. `prepare` makes what a call that asks for it by name needs, and says why it
    cannot. `notes` says what of a call costs more than it seems. `direct` gives what runs a remembered call without
    torch's dispatcher, where that would lead back to Python, or None.
    """

    name: str
    summary: str
    unavailable_reasons: Callable[[], list[str]]
    unsupported_reasons: Callable[[Inputs], list[str]]
    sample: Callable[[SamplingInputs], Tensor]
    attend: Callable[[AttentionInputs], Tensor]
    is_registered: bool = False
    only_by_name: Callable[[Inputs], bool] = lambda _inputs: False
    prepare: Callable[[Inputs], list[str]] = lambda _inputs: []
    notes: Callable[[Inputs], list[str]] = lambda _inputs: []
    direct: Callable[[Inputs, Tensors], Direct | None] = lambda _inputs, _tensors: None


def transforms_in_force() -> list[str]:
    """Return, as reasons against a backend that only autograd can differentiate, what else is at work on the call."""
    reasons = []
    if torch_names.TRANSFORMS.missing:
        reasons.append(f"it cannot tell what is at work on a call: {torch_names.TRANSFORMS.verdict}")
    elif not torch.compiler.is_compiling():
        if torch_names.are_transforms_active():
            reasons.append("the transforms of torch.func do not reach into it")
        if torch_names.is_forward_mode_on():
            reasons.append("it has no forward-mode derivative")
    return reasons


def is_written_to_onnx() -> bool:
    """Return whether torch.onnx.export makes a graph of the call, whose operators ONNX must have."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


class SlowBackendWarning(UserWarning):
    """The fast backend of a device is not available; `deform_attn.explain()` says why."""
