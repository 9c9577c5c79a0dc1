r"""The maths of deformable attention, as the paper writes it, in plain torch.

Zhu et al. 2020, *Deformable DETR* (https://arxiv.org/abs/2010.04159). For a query with content :math:`z_q` and
reference point :math:`p_q`, equation 2 reads one map :math:`x`, equation 3 one map :math:`x^l` a level:

.. math::
    \mathrm{DeformAttn}(z_q, p_q, x) = \sum_m W_m \Big[\sum_k A_{mqk} \cdot W'_m x(p_q + \Delta p_{mqk})\Big]

    \mathrm{MSDeformAttn}(z_q, \hat p_q, \{x^l\}) =
        \sum_m W_m \Big[\sum_l \sum_k A_{mlqk} \cdot W'_m x^l(\phi_l(\hat p_q) + \Delta p_{mlqk})\Big]

Everything here gathers pixels by index, runs on any device in any float dtype, and is differentiable to any order.
It optimises nothing: it is what the faster backends are judged by. Letters: N batch, Q queries, S pixels of all levels,
M heads, D channels a head, C = M*D, L levels, P points a head and level, T points a head; (x, y) for points, (H, W)
for sizes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deform_attn import tracing
from deform_attn.cells import Maps, cells_of, maps_of
from deform_attn.shape_checks import Pairs

SpatialShapes = Pairs | Tensor


def deform_attn(
    z: Tensor, p: Tensor, x: Tensor, query_proj: tuple[Tensor, Tensor], value_proj: Tensor, output_proj: Tensor, M: int
) -> Tensor:
    """Return equation 2, DeformAttn(z_q, p_q, x), for all queries of a batch: `[N, Q, C]`.

    Args:
        z: content of the queries, `[N, Q, C]`.
        p: their reference points (x, y) in [0, 1], `[N, Q, 2]`.
        x: the feature map, `[N, C, H, W]`.
        query_proj: weight `[3*M*K, C]` and bias `[3*M*K]` of the one linear map that gives the offsets of all heads
            (first 2*M*K channels, laid out (M, K, 2), pixels) and their logits (M*K channels, laid out (M, K)).
        value_proj: the W'_m of all heads, one below the other, `[M*D, C]`.
        output_proj: the W_m of all heads, side by side, `[C, M*D]`.
        M: number of heads.
    """
    N, Q, _ = z.shape
    H, W = x.shape[-2:]
    weight, bias = query_proj
    K = len(weight) // (3 * M)
    projected = z @ weight.T + bias
    offsets = projected[..., : 2 * M * K].reshape(N, Q, M, K, 2)
    A = projected[..., 2 * M * K :].reshape(N, Q, M, K).softmax(-1)
    # W' is linear, so the map may be projected once instead of at every point; off the map both are 0.
    value = torch.einsum("dc,nchw->nhwd", value_proj, x).reshape(N, H * W, M, -1)
    locations = p[:, :, None, None] + offsets / p.new_tensor([W, H])  # [N, Q, M, K, 2]
    points = read(value, maps_of(((H, W),), [K], value), locations)  # [N, Q, M, K, D]
    heads = (A[..., None] * points).sum(-2).flatten(2)  # [N, Q, M*D]
    return heads @ output_proj.T


def deformable_attention(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    num_points: Sequence[int],
    padding_mask: Tensor | None = None,
    offset_scale: float = 0.5,
    interpolation: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    """Return the bracket of equation 3, all heads side by side, from raw offsets and logits: `[N, Q, M*D]`.

    `reference_points [N, Q, L or 1, 2 or 4]`, `sampling_offsets [N, Q, M, T, 2]`, `attention_logits [N, Q, M, T]`.
    """
    dtype = compute_dtype(value, reference_points, sampling_offsets, attention_logits)
    locations, weights = sampling(
        spatial_shapes, reference_points, sampling_offsets, attention_logits, num_points, offset_scale, dtype
    )
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    return multi_scale_deformable_attention(
        value, spatial_shapes, locations, weights, num_points, interpolation, padding_mode
    )


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int],
    interpolation: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    """Return the bracket of equation 3 from ready-made points and weights, the classic op: `[N, Q, M*D]`.

    `value [N, S, M, D]`, `sampling_locations [N, Q, M, T, 2]`, `attention_weights [N, Q, M, T]`.
    """
    dtype = compute_dtype(value, sampling_locations, attention_weights)
    maps = maps_of(spatial_shapes, num_points, value)
    A = attention_weights.to(dtype).masked_fill(maps.empty, 0)
    reads = read(value.to(dtype), maps, sampling_locations.to(dtype), interpolation, padding_mode)  # [N, Q, M, T, D]
    output = (A[..., None] * reads).sum(3)  # [N, Q, M, D]
    return output.flatten(2).to(value.dtype)


def sampling(
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    num_points: Sequence[int],
    offset_scale: float = 0.5,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return where each head looks, `[N, Q, M, T, 2]` in (x, y), and how much each point counts, `[N, Q, M, T]`.

    Both are in `dtype`, by default the one that the three tensors call for.
    """
    dtype = dtype or compute_dtype(reference_points, sampling_offsets, attention_logits)
    maps = maps_of(spatial_shapes, num_points, reference_points)
    offsets = sampling_offsets.to(dtype).masked_fill(maps.empty[:, None], 0)
    references = of_points(reference_points.to(dtype), num_points)  # [N, Q, 1, T, 2 or 4]
    if tracing.fixed_size(references, -1) == 2:
        steps = offsets / torch.stack((maps.W, maps.H), -1).clamp(min=1)
    else:
        steps = _step_in_box(offsets / maps.P[:, None], references[..., 2:]) * offset_scale
    return references[..., :2] + steps, normal(attention_logits.to(dtype).softmax(-1))


def of_points(references: Tensor, num_points: Sequence[int]) -> Tensor:
    """Return what is `[N, Q, L or 1, ...]` for each point of a head, `[N, Q, 1, T, ...]`."""
    levels = references.expand(-1, -1, len(num_points), -1).unbind(2)
    points = [level[:, :, None].expand(-1, -1, P, -1) for level, P in zip(levels, num_points, strict=True)]
    return torch.cat(points, dim=2)[:, :, None]


def normal(weights: Tensor) -> Tensor:
    """Return `weights` of a softmax, 0 where they are below the smallest normal number of their dtype.

    Whether smaller ones exist depends on the hardware and its modes, and times an infinity it would matter.
    """
    return weights * (weights >= torch.finfo(weights.dtype).tiny)


def read(
    value: Tensor, maps: Maps, locations: Tensor, interpolation: str = "bilinear", padding_mode: str = "zeros"
) -> Tensor:
    """Return the maps in `value [N, S, M, D]` read at fractional `locations [N, Q, M, T, 2]`: `[N, Q, M, T, D]`.

    With padding "zeros" the plane around a map is 0, with "border" it repeats the nearest pixel of the map. A NaN
    location reads NaN.
    """
    is_nan = locations.isnan().any(-1) & ~maps.empty  # [N, Q, M, T]
    cells = cells_of(value, maps, locations, interpolation, padding_mode)
    result = value.new_zeros(())
    for corner in cells.corners:
        weight = torch.where(corner.on_map, corner.across * corner.down, 0)[..., None]
        pixel = cells.padded[corner.place]  # [N, Q, M, T, D]
        # A corner of weight 0 is not read, so that a NaN there stays there; a finite one still shapes the slope.
        pixel = torch.where((weight == 0) & ~pixel.isfinite(), 0, pixel)
        result = result + weight * pixel
    return torch.where(is_nan[..., None], torch.nan, result)


def _step_in_box(offset: Tensor, size: Tensor) -> Tensor:
    """Return `offset * size`; where one of them is not finite, without a path back.

    The point then lies at an infinite or NaN location, which gets a gradient of 0; times infinity it would be NaN.
    """
    if not torch.is_grad_enabled():
        return offset * size
    finite = offset.isfinite() & size.isfinite()
    step = torch.where(finite, offset, 0) * torch.where(finite, size, 0)
    return torch.where(finite, step, (offset * size).detach())


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of coordinates and accumulation: float64 if any tensor has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
