"""The backend `grid_sample`: torch's own grid_sample, one call a level, in float32 or float64.

Its arithmetic differs from ours where NaN or infinity is involved: it multiplies an unread neighbour's NaN by 0. Such
calls, which only a look at the numbers can tell, are read by reference.py instead, so that the result is the same.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it
from torch.nn import functional as F

from deform_attn import reference
from deform_attn.backends.base import Backend, is_written_to_onnx, transforms_in_force
from deform_attn.cells import Maps, in_pixels, maps_of, placed
from deform_attn.checks import AttentionInputs, Inputs, SamplingInputs
from deform_attn.tensor_checks import is_fake


def _unavailable_reasons() -> list[str]:
    return []


def _unsupported_reasons(inputs: Inputs) -> list[str]:
    reasons = transforms_in_force()
    if is_written_to_onnx():
        pass  # numbers are taken to be finite there
    elif torch.compiler.is_compiling():
        reasons.append("torch.compile and export cannot trace its look at the numbers for NaN")
    elif inputs.value.device.type == "meta" or is_fake(inputs.value):
        reasons.append("meta and fake tensors have no numbers to look at for NaN")
    points = inputs.sampling_offsets if isinstance(inputs, AttentionInputs) else inputs.sampling_locations
    if inputs.value.numel() == 0 or points.numel() == 0 or not _reads(inputs):
        reasons.append("there is nothing to read, and torch's grid_sample refuses empty tensors")
    return reasons


def _notes(inputs: Inputs) -> list[str]:
    if isinstance(inputs.spatial_shapes, Tensor):
        return [
            "grid_sample waits for the device in each call, to read spatial_shapes; a list of int pairs spares that"
        ]
    return []


def _reads(inputs: Inputs) -> bool:
    """Return whether a map with pixels has points; of sizes that the host has not read nobody knows."""
    shapes = inputs.spatial_shapes
    return isinstance(shapes, Tensor) or any(H * W * P for (H, W), P in zip(shapes, inputs.num_points, strict=True))


def in_graph(inputs: SamplingInputs) -> Tensor:
    """Return the output `[N, Q, M*D]` for finite numbers, without a look at any: as a graph, that of a file of ONNX."""
    sizes = inputs.spatial_shapes
    if isinstance(sizes, Tensor):
        # Symbols, of which torch then knows what they add up to. Not tolist, of which ONNX would have a sequence.
        pairs: Any = tuple((sizes[level, 0].item(), sizes[level, 1].item()) for level in range(len(sizes)))
        for H, W in pairs:
            torch._check(H >= 1)
            torch._check(W >= 1)
        torch._check(sum(H * W for H, W in pairs) == inputs.value.shape[1])
        inputs = inputs._replace(spatial_shapes=pairs)
    return _read_levels(inputs, inputs.spatial_shapes)


def _in_trace(inputs: SamplingInputs) -> Tensor:
    """Return the output `[N, Q, M*D]` for finite numbers, as torch.jit.trace records it: free sizes are tensors."""
    sizes: Any = inputs.spatial_shapes
    if isinstance(sizes, Tensor):
        sizes = [(sizes[level, 0], sizes[level, 1]) for level in range(len(inputs.num_points))]
    return _read_levels(inputs, sizes)


def _sample(inputs: SamplingInputs) -> Tensor:
    if is_written_to_onnx():
        return in_graph(inputs)
    if is_tracing():
        return _in_trace(inputs)
    read = _with_pairs(inputs)
    if read is not None and inputs.sampling_locations.isfinite().all():
        output = _read_levels(read, read.spatial_shapes)
        if output.isfinite().all():
            return output
    return reference.multi_scale_deformable_attention(*inputs)


def _with_pairs(inputs: SamplingInputs) -> SamplingInputs | None:
    """Return a call with its sizes as pairs, for which it waits for the device; None where they do not fit."""
    if not isinstance(inputs.spatial_shapes, Tensor):
        return inputs
    shapes = tuple((H, W) for H, W in inputs.spatial_shapes.tolist())
    read = inputs._replace(spatial_shapes=shapes)
    fits = min(map(min, shapes)) >= 0 and sum(H * W for H, W in shapes) == inputs.value.shape[1]
    return read if fits and _reads(read) else None


def _attend(inputs: AttentionInputs) -> Tensor:
    tensors = inputs.reference_points, inputs.sampling_offsets, inputs.attention_logits
    locations, weights = reference.sampling(
        inputs.spatial_shapes,
        *tensors,
        inputs.num_points,
        inputs.offset_scale,
        reference.compute_dtype(inputs.value, *tensors),
    )
    value = inputs.value
    if inputs.padding_mask is not None:
        value = value.masked_fill(inputs.padding_mask[:, :, None, None], 0)
    options = inputs.num_points, inputs.interpolation, inputs.padding_mode
    return _sample(SamplingInputs(value, inputs.spatial_shapes, locations, weights, *options))


def _read_levels(inputs: SamplingInputs, pairs: Any) -> Tensor:
    """Return the output `[N, Q, M*D]` for finite locations, on maps of which `pairs` are the sizes."""
    value, shapes, locations, weights, num_points, interpolation, padding_mode = inputs
    dtype = reference.compute_dtype(value, locations, weights)
    N, _, M, D = value.shape
    Q = locations.shape[1]
    maps = _levels(value.to(dtype), [H * W for H, W in pairs])
    places = maps_of(shapes, num_points, value)
    grids = _grid(locations.to(dtype).transpose(1, 2), places, interpolation, padding_mode).split(list(num_points), 3)
    shares = weights.to(dtype).transpose(1, 2).split(list(num_points), dim=3)  # L x [N, M, Q, P]
    output = value.new_zeros((N * M, D, Q), dtype=dtype)
    for (H, W), P, x, grid, share in zip(pairs, num_points, maps, grids, shares, strict=True):
        if P == 0 or (not isinstance(H, Tensor) and H * W == 0):
            continue
        x = x.permute(0, 2, 3, 1).reshape(N * M, D, H, W)
        grid = grid.reshape(N * M, Q, P, 2)
        corners = F.grid_sample(x, grid, interpolation, "zeros", align_corners=False)  # [N*M, D, Q, P]
        output = output + (corners * share.reshape(N * M, 1, Q, P)).sum(-1)
    return output.reshape(N, M * D, Q).transpose(1, 2).contiguous().to(value.dtype)


def _levels(value: Tensor, areas: Sequence[int]) -> list[Tensor]:
    """Return the maps in `value [N, S, M, D]`, `[N, H*W, M, D]` each.

    Cut out one by one: of pieces whose sizes an input holds, an exporter to ONNX would make a sequence, which few
    runtimes know.
    """
    firsts = itertools.accumulate(areas[:-1], initial=0)
    return [value.narrow(1, first, area) for first, area in zip(firsts, areas, strict=True)]


def _grid(locations: Tensor, maps: Maps, interpolation: str, padding_mode: str) -> Tensor:
    """Return finite `locations` in grid_sample's units, where [-1, 1] spans the map, `[N, M, Q, T, 2]`.

    Its own rules at the border and for halves differ from ours: a location beyond the border is moved there, one that
    reads nothing far away, and of "nearest" each to the centre of its pixel.
    """
    size = torch.stack((maps.W, maps.H), -1)
    pixels = placed(in_pixels(locations, size, interpolation), size, padding_mode)
    off = ((pixels <= -1) | (pixels >= size)).any(-1, keepdim=True)
    pixels = torch.where(off, -2, pixels)  # both, since either would pass 0 times a NaN on to the other
    return (2 * pixels + 1) / size.clamp(min=1) - 1


GRID_SAMPLE = Backend(
    name="grid_sample",
    summary="torch's grid_sample: every device with that op; leaves calls with NaN or infinity to reference",
    unavailable_reasons=_unavailable_reasons,
    unsupported_reasons=_unsupported_reasons,
    sample=_sample,
    attend=_attend,
    notes=_notes,
)
