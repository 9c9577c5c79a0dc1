"""The forms of one node each, which a plugin of the runtime computes: TensorRT's own, and that of mmdeploy.

Both nodes take value [N, S, M, D], the sizes of the maps [L, 2] and the place of their first pixels [L] in int32,
locations [N, Q, M, L, P, 2] and weights [N, Q, M, L, P]: every level has as many points as every other.
"""

from typing import Any

import torch
from torch import Tensor

from deform_attn.checks import SamplingInputs
from deform_attn.shape_checks import Pairs

TENSORRT = "trt.plugins::MultiscaleDeformableAttnPlugin_TRT"
MMDEPLOY = "mmdeploy::MMCVMultiScaleDeformableAttention"


def tensorrt(inputs: SamplingInputs, plugin_version: int, half_node: bool) -> Tensor:
    """Return the output `[N, Q, M*D]` of the plugin of TensorRT, whose own is `[N, Q, M, D]`."""
    value = inputs.value
    half = half_node and value.dtype == torch.float16
    attributes: dict[str, Any] = {"plugin_version": str(plugin_version), "plugin_namespace": ""}
    N, _, M, D = value.shape
    shape = N, inputs.sampling_locations.shape[1], M, D
    output = _node(TENSORRT, inputs, torch.float16 if half else torch.float32, attributes, shape)
    return output.flatten(2).to(value.dtype)


def mmdeploy(inputs: SamplingInputs) -> Tensor:
    """Return the output `[N, Q, M*D]` of the node of mmdeploy 1.x."""
    N, _, M, D = inputs.value.shape
    shape = N, inputs.sampling_locations.shape[1], M * D
    return _node(MMDEPLOY, inputs, torch.float32, {"im2col_step": 64}, shape).to(inputs.value.dtype)


def _node(
    name: str,
    inputs: SamplingInputs,
    dtype: torch.dtype,
    attributes: dict[str, Any],
    shape: tuple[int, ...],
) -> Tensor:
    tensors = [inputs.value, *_sizes_and_starts(inputs), *_points_of_levels(inputs)]
    tensors = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
    return torch.onnx.ops.symbolic(name, tensors, attributes, dtype=dtype, shape=shape, version=1)


def sizes_tensor(sizes: Pairs | Tensor, value: Tensor) -> Tensor:
    """Return the sizes (H, W) of maps as a tensor `[L, 2]`."""
    if isinstance(sizes, Tensor):
        return sizes
    # Filled, as a list of symbols would make constants of them.
    like = value.new_empty((), dtype=torch.int64)
    return torch.stack([torch.cat([like.new_full((1,), side) for side in pair]) for pair in sizes])


def _sizes_and_starts(inputs: SamplingInputs) -> tuple[Tensor, Tensor]:
    """Return (H, W) of the maps, `[L, 2]`, and the place of their first pixels, `[L]`, both in int32."""
    sizes = sizes_tensor(inputs.spatial_shapes, inputs.value)
    areas = sizes[:, 0] * sizes[:, 1]
    return sizes.to(torch.int32), (areas.cumsum(0) - areas).to(torch.int32)


def _points_of_levels(inputs: SamplingInputs) -> tuple[Tensor, Tensor]:
    """Return locations `[N, Q, M, L, P, 2]` and weights `[N, Q, M, L, P]`, P being the largest count of points.

    A level with fewer is filled up by points at the middle of its map, of weight 0.
    """
    locations, weights, counts = inputs.sampling_locations, inputs.attention_weights, inputs.num_points
    L, P = len(counts), max(counts)
    if len(set(counts)) == 1:
        return locations.unflatten(3, (L, P)), weights.unflatten(3, (L, P))
    padded = [
        (
            torch.nn.functional.pad(location, (0, 0, 0, P - count), value=0.5),
            torch.nn.functional.pad(weight, (0, P - count)),
        )
        for location, weight, count in zip(
            locations.split(list(counts), 3), weights.split(list(counts), 3), counts, strict=True
        )
    ]
    return torch.stack([each for each, _ in padded], 3), torch.stack([each for _, each in padded], 3)
