"""The backend `native`: compiled CPU kernels (native/), on torch's own threads.

Deterministic to the last bit for any number of threads, on one instruction set (`DEFORM_ATTN_ISA` may lower it).
"""

from deform_attn.backends.base import Backend, is_written_to_onnx
from deform_attn.backends.native import registration
from deform_attn.checks import Inputs
from deform_attn.torch_ops import schema
from deform_attn.whole_numbers import fit


def _unsupported_reasons(inputs: Inputs) -> list[str]:
    reasons = []
    value = inputs.value
    if value.device.type != "cpu":
        reasons.append(f"it runs on CPU tensors, not on {value.device.type}")
    if is_written_to_onnx():
        reasons.append("torch.onnx.export has no operator for its kernels")
    if not fit([value.shape[1]]):
        reasons.append("more than 2^31 pixels")
    return reasons


NATIVE = Backend(
    name="native",
    summary="compiled CPU kernels: every option and every derivative",
    unavailable_reasons=registration.unavailable_reasons,
    unsupported_reasons=_unsupported_reasons,
    sample=schema.run,
    attend=schema.run,
    is_registered=True,
    notes=registration.notes,
)
