"""The form `native`: one node of our own an attention, which the CPU kernels compute inside ONNX Runtime.

`DeformableAttention` takes value [N, S, M, D], the sizes of the maps [L, 2], references, raw offsets and logits;
`MaskedDeformableAttention` takes the mask, too; `MultiScaleDeformableAttention` takes locations and weights.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs
from deform_attn.export.nodes import sizes_tensor

DOMAIN = "deform_attn"


def sample(inputs: SamplingInputs) -> Tensor:
    """Return the output `[N, Q, M*D]` of a node that takes locations and weights."""
    return _node("MultiScaleDeformableAttention", inputs, [inputs.sampling_locations, inputs.attention_weights], {})


def attend(inputs: AttentionInputs) -> Tensor:
    """Return the output `[N, Q, M*D]` of a node that takes raw offsets and logits."""
    references, offsets, scale = inputs.reference_points, inputs.sampling_offsets, float(inputs.offset_scale)
    if offsets.dtype == torch.float64 and references.shape[-1] == 4 and ctypes.c_float(scale).value != scale:
        # ONNX has attributes in float32 only, which is not exact enough here.
        offsets, scale = offsets * scale, 1.0
    tensors = [references, offsets, inputs.attention_logits]
    if inputs.padding_mask is None:
        return _node("DeformableAttention", inputs, tensors, {"offset_scale": scale})
    return _node("MaskedDeformableAttention", inputs, [*tensors, inputs.padding_mask], {"offset_scale": scale})


def _node(name: str, inputs: Inputs, tensors: list[Tensor], attributes: dict[str, Any]) -> Tensor:
    value = inputs.value
    N, _, M, D = value.shape
    in_float64 = any(tensor.dtype == torch.float64 for tensor in tensors)
    computed = value.double() if in_float64 else value
    given = [computed, sizes_tensor(inputs.spatial_shapes, value), *tensors]
    attributes |= {
        "num_points": [*inputs.num_points],
        "interpolation": inputs.interpolation,
        "padding_mode": inputs.padding_mode,
    }
    shape = N, tensors[0].shape[1], M * D
    output: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", given, attributes, dtype=computed.dtype, shape=shape, version=1
    )
    return output.to(value.dtype)
