"""The backend `triton`: GPU kernels for CUDA and ROCm tensors, registered under the ops; compiled on first use.

Under TRITON_INTERPRET=1 it takes tensors on the CPU where it is asked for by name: Triton's interpreter runs the same
kernels there, slowly. Then the ops ask which backend is meant before they go to the CPU's kernels.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from deform_attn import torch_names
from deform_attn.backends.base import Backend, is_written_to_onnx
from deform_attn.backends.triton import ops, toolchain
from deform_attn.backends.triton.direct import direct_of
from deform_attn.backends.triton.launch import MOST_IMAGES
from deform_attn.checks import Inputs
from deform_attn.tensor_checks import is_fake
from deform_attn.torch_ops import meant, schema
from deform_attn.whole_numbers import fit

NAME = "triton"
# A type of device, and torch's dispatch key for it; ROCm has CUDA's. A further device is a line here.
KEYS = {"cuda": "CUDA"}

_MOST_CHANNELS = 2048
_MOST_POINTS = 256  # a head; each is code of its own


def _unavailable_reasons() -> list[str]:
    return list(toolchain.missing())


def _unsupported_reasons(inputs: Inputs) -> list[str]:
    value = inputs.value
    device = value.device
    reasons = []
    if device.type not in KEYS and not (device.type == "cpu" and toolchain.is_interpreting()):
        reasons.append(f"it runs on CUDA and ROCm tensors, not on {device.type}")
    if device in ops.failures:
        reasons.append(ops.failures[device])
    if is_written_to_onnx():
        reasons.append("torch.onnx.export has no operator for its kernels")
    if not fit([value.shape[1]]):
        reasons.append("more than 2^31 pixels")
    if not fit([value.shape[3]], _MOST_CHANNELS):
        reasons.append(f"more than {_MOST_CHANNELS} channels per head")
    if not fit([value.shape[2]], MOST_IMAGES):
        reasons.append(f"more than {MOST_IMAGES} heads")
    if not fit([sum(inputs.num_points)], _MOST_POINTS):
        reasons.append(f"more than {_MOST_POINTS} points per head")
    return reasons


def _only_by_name(inputs: Inputs) -> bool:
    return inputs.value.device.type not in KEYS


def _prepare(inputs: Inputs) -> list[str]:
    """Compile the kernels of a call that asks for this backend by name; return why they cannot be."""
    if torch.compiler.is_compiling() or is_fake(inputs.value) or inputs.value.device.type not in KEYS:
        return []
    return ops.prepare(inputs)


def _run(inputs: Inputs) -> Tensor:
    with meant.meaning(NAME) if _only_by_name(inputs) else nullcontext():
        return schema.run(inputs)


TRITON = Backend(
    name=NAME,
    summary="GPU kernels, compiled by Triton on first use: every option and every derivative",
    unavailable_reasons=_unavailable_reasons,
    unsupported_reasons=_unsupported_reasons,
    sample=_run,
    attend=_run,
    is_registered=True,
    only_by_name=_only_by_name,
    prepare=_prepare,
    direct=direct_of,
)


def _switch(op: Any, interpreted: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel, above those of the devices, that asks which one a call on the CPU means."""

    def select(*args: Any) -> Any:
        device = args[0].device.type
        if meant.current() == NAME and device == "cpu":
            return interpreted(*args)
        key = getattr(torch_names.DispatchKey, "Meta" if device == "meta" else device.upper())
        return op.redispatch(torch_names.KeySet(key), *args)

    return select


if not torch_names.OPS.missing:
    for _op in schema.OPS:
        _forward, _backward = ops.forward_of(_op), ops.backward_of(_op)
        for _key in KEYS.values():
            schema.register(_op, _forward, _backward, _key)
            if _op in (schema.SAMPLE, schema.ATTEND):
                schema.register_twin(_op, ops.forward_of(_op, twin=True), _key)
        if toolchain.is_interpreting():
            schema.register(_op, _switch(_op.forward, _forward), _switch(_op.backward, _backward), "BackendSelect")
