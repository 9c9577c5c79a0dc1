"""The backend `reference`: the maths of reference.py as it stands, for any input."""

from torch import Tensor

from deform_attn import reference
from deform_attn.backends.base import Backend
from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs


def _sample(inputs: SamplingInputs) -> Tensor:
    return reference.multi_scale_deformable_attention(*inputs)


def _attend(inputs: AttentionInputs) -> Tensor:
    return reference.deformable_attention(*inputs)


def _no_reasons(inputs: Inputs | None = None) -> list[str]:
    return []


REFERENCE = Backend(
    name="reference",
    summary="the maths in plain torch: every device, every option, every derivative; slow",
    unavailable_reasons=_no_reasons,
    unsupported_reasons=_no_reasons,
    sample=_sample,
    attend=_attend,
)
