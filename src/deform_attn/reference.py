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

SpatialShapes = Sequence[tuple[int, int]]


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
    points = read(value, (H, W), locations)  # [N, Q, M, K, D]
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
    maps = value.to(dtype).split([H * W for H, W in spatial_shapes], dim=1)
    locations = sampling_locations.to(dtype).split(list(num_points), dim=3)
    weights = attention_weights.to(dtype).split(list(num_points), dim=3)
    levels = []
    for x, (H, W), points, A in zip(maps, spatial_shapes, locations, weights, strict=True):
        A = A if H * W else _ignored(A)
        reads = read(x, (H, W), points, interpolation, padding_mode)  # [N, Q, M, P, D]
        levels.append((A[..., None] * reads).sum(3))
    output = torch.stack(levels).sum(0)  # [N, Q, M, D]
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
    references = reference_points.to(dtype).expand(-1, -1, len(spatial_shapes), -1)
    offsets = sampling_offsets.to(dtype).split(list(num_points), dim=3)
    locations = []
    for (H, W), P, reference, offset in zip(spatial_shapes, num_points, references.unbind(2), offsets, strict=True):
        reference = reference[:, :, None, None]  # [N, Q, 1, 1, 2 or 4]
        offset = offset if H * W else _ignored(offset)
        if reference.shape[-1] == 2:
            step = torch.stack((offset[..., 0] / max(W, 1), offset[..., 1] / max(H, 1)), -1)
        else:
            step = _step_in_box(offset / max(P, 1), reference[..., 2:]) * offset_scale
        locations.append(reference[..., :2] + step)  # [N, Q, M, P, 2]
    return torch.cat(locations, dim=3), normal(attention_logits.to(dtype).softmax(-1))


def normal(weights: Tensor) -> Tensor:
    """Return `weights` of a softmax, 0 where they are below the smallest normal number of their dtype.

    Whether smaller ones exist depends on the hardware and its modes, and times an infinity it would matter.
    """
    return weights * (weights >= torch.finfo(weights.dtype).tiny)


def read(
    x: Tensor, size: tuple[int, int], locations: Tensor, interpolation: str = "bilinear", padding_mode: str = "zeros"
) -> Tensor:
    """Return the map `x [N, H*W, M, D]` of `size` (H, W) read at fractional `locations [N, Q, M, P, 2]`.

    Returns `[N, Q, M, P, D]`. The centre of pixel i lies at (i + 0.5) / W. With padding "zeros" the plane around the
    map is 0, with "border" it repeats the nearest pixel of the map. A NaN location reads NaN.
    """
    H, W = size
    is_nan = locations.isnan().any(-1) & (H * W > 0)  # [N, Q, M, P]
    if interpolation == "nearest":
        corners = _nearest_pixel(locations, H, W, padding_mode)
    else:
        corners = _bilinear_corners(locations, H, W, padding_mode)
    # One zero pixel behind the last stands for everything off the map; its gradient is dropped with it.
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 1))
    n = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
    m = torch.arange(x.shape[2], device=x.device)[:, None]
    result = x.new_zeros(())
    for column, row, weight in corners:
        on_map = (column >= 0) & (column < W) & (row >= 0) & (row < H)
        pixel = torch.where(on_map, row * W + column, H * W)
        weight = torch.where(on_map, weight, 0)[..., None]
        corner = x[n, pixel, m]  # [N, Q, M, P, D]
        # A corner of weight 0 is not read, so that a NaN there stays there; a finite one still shapes the slope.
        corner = torch.where((weight == 0) & ~corner.isfinite(), 0, corner)
        result = result + weight * corner
    return torch.where(is_nan[..., None], torch.nan, result)


Corner = tuple[Tensor, Tensor, Tensor]


def _bilinear_corners(locations: Tensor, H: int, W: int, padding_mode: str) -> list[Corner]:
    """Return column, row and weight of the four pixels around each location, each `[N, Q, M, P]`."""
    x = locations[..., 0] * W - 0.5  # 0 at the centre of the first pixel
    y = locations[..., 1] * H - 0.5
    x_beyond, y_beyond = x > W - 1, y > H - 1
    if padding_mode == "border":
        # Not clamp, which passes a gradient on at W - 1 itself, where the surface is level to the right.
        x, y = torch.where(x >= W - 1, W - 1, x.clamp(min=0)), torch.where(y >= H - 1, H - 1, y.clamp(min=0))
    inside = (x > -1) & (x < 2 * W) & (y > -1) & (y < 2 * H)  # False for NaN and infinity, True on the map
    x, y = torch.where(inside, x, -2), torch.where(inside, y, -2)
    left, top = x.floor(), y.floor()
    to_right, to_bottom = x - left, y - top
    # From here on in integers: W may be none of the numbers of float32, which above 2^24 leaves some out.
    left, top = left.long(), top.long()
    right, bottom = left + 1, top + 1
    if padding_mode == "border":  # beyond the last pixel lies its copy
        left, right = torch.where(x_beyond, W - 1, left).clamp(max=W - 1), right.clamp(max=W - 1)
        top, bottom = torch.where(y_beyond, H - 1, top).clamp(max=H - 1), bottom.clamp(max=H - 1)
    return [
        (left, top, (1 - to_right) * (1 - to_bottom)),
        (right, top, to_right * (1 - to_bottom)),
        (left, bottom, (1 - to_right) * to_bottom),
        (right, bottom, to_right * to_bottom),
    ]


def _nearest_pixel(locations: Tensor, H: int, W: int, padding_mode: str) -> list[Corner]:
    """Return column, row and weight 1 of the pixel that each location lies in, each `[N, Q, M, P]`."""
    column = (locations[..., 0] * W).floor()
    row = (locations[..., 1] * H).floor()
    x_beyond, y_beyond = column > W - 1, row > H - 1
    if padding_mode == "border":
        column, row = column.clamp(0, W - 1), row.clamp(0, H - 1)
    inside = (column >= 0) & (column < 2 * W) & (row >= 0) & (row < 2 * H)
    column, row = torch.where(inside, column, -2), torch.where(inside, row, -2)
    # floor's gradient is zeros, and keeping it makes that of the locations zeros rather than missing.
    one = 1 + 0 * (column + row)
    column, row = column.long(), row.long()
    if padding_mode == "border":
        column = torch.where(x_beyond, W - 1, column).clamp(max=W - 1)
        row = torch.where(y_beyond, H - 1, row).clamp(max=H - 1)
    return [(column, row, one)]


def _step_in_box(offset: Tensor, size: Tensor) -> Tensor:
    """Return `offset * size`; where one of them is not finite, without a path back.

    The point then lies at an infinite or NaN location, which gets a gradient of 0; times infinity it would be NaN.
    """
    finite = offset.isfinite() & size.isfinite()
    step = torch.where(finite, offset, 0) * torch.where(finite, size, 0)
    return torch.where(finite, step, (offset * size).detach())


def _ignored(tensor: Tensor) -> Tensor:
    """Return a stand-in for offsets or weights of an empty level: 0 for each, whatever it is, with a gradient of 0."""
    return tensor.masked_fill(torch.ones_like(tensor, dtype=torch.bool), 0)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of coordinates and accumulation: float64 if any tensor has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
