"""Modules with the structure of families that are not on PyPI; each computes by `grid_sample` what it means."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


def ms_deform_attn_core_pytorch(value, shapes, locations, weights):
    """Return `[N, Q, M*D]` for `value [N, S, M, D]`, a list of locations `[N, Q, M, P, 2]` and one of weights."""
    total = 0
    maps = value.split([int(H) * int(W) for H, W in shapes], dim=1)
    for pixels, (H, W), where, weight in zip(maps, shapes, locations, weights, strict=True):
        image = pixels.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (int(H), int(W)))  # [N*M, D, H, W]
        grid = 2 * where.transpose(1, 2).flatten(0, 1) - 1  # [N*M, Q, P, 2]
        read = F.grid_sample(image, grid, align_corners=False)  # [N*M, D, Q, P]
        total = total + (read * weight.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return total.unflatten(0, value.shape[:1] + value.shape[2:3]).flatten(1, 2).transpose(1, 2)


def deformable_attention_core_func(*args):
    """Stand in for version 1 of RT-DETR's."""
    return ms_deform_attn_core_pytorch(*args)


def deformable_attention_core_func_v2(value, shapes, locations, weights, num_points_list, method="default"):
    """Stand in for version 2, in which D-FINE passes a list of maps."""
    if not isinstance(value, torch.Tensor):
        value = torch.cat(value, -1).permute(0, 3, 1, 2)
    return ms_deform_attn_core_pytorch(value, shapes, locations, weights)


class _Attention(nn.Module):
    """What all have: the projections, and where they look."""

    def _build(self, C, M, points, value_dim=None):
        T = sum(points)
        self.sampling_offsets, self.attention_weights = nn.Linear(C, M * T * 2), nn.Linear(C, M * T)
        if value_dim:
            self.value_proj, self.output_proj = nn.Linear(C, value_dim), nn.Linear(value_dim, C)

    def _where(self, M, points, query, references, shapes):
        offsets = self.sampling_offsets(query).unflatten(-1, (M, -1, 2)).split(points, 3)
        weights = self.attention_weights(query).unflatten(-1, (M, -1)).softmax(-1).split(points, 3)
        references = references[:, :, None].expand(-1, -1, M, len(points), -1)
        locations = []
        for level, (offset, (H, W), P) in enumerate(zip(offsets, shapes, points, strict=True)):
            reference = references[:, :, :, level, None]
            if references.shape[-1] == 2:
                moved = offset / torch.tensor([W, H], dtype=offset.dtype)
            else:
                moved = offset / P * reference[..., 2:] * 0.5
            locations.append(reference[..., :2] + moved)
        return locations, weights

    def _projected(self, M, features, padding):
        value = self.value_proj(features)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        return value.unflatten(-1, (M, -1))


class _OriginalAttention(_Attention):
    def __init__(self, d_model=8, n_levels=2, n_heads=2, n_points=3, ratio=1.0):
        super().__init__()
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.im2col_step, self.ratio = 128, ratio
        self._build(d_model, n_heads, [n_points] * n_levels, int(d_model * ratio))

    def _attend(self, query, references, features, shapes, padding):
        points = [self.n_points] * self.n_levels
        value = self._projected(self.n_heads, features, padding)
        found = self._where(self.n_heads, points, query, references, shapes)
        return self.output_proj(ms_deform_attn_core_pytorch(value, shapes, *found))


class Original:
    """The authors' and its copies."""

    class MSDeformAttn(_OriginalAttention):
        def forward(
            self,
            query,
            reference_points,
            input_flatten,
            input_spatial_shapes,
            input_level_start_index,
            input_padding_mask=None,
        ):
            sizes = input_spatial_shapes.tolist()
            return self._attend(query, reference_points, input_flatten, sizes, input_padding_mask)


class Ultralytics:
    class MSDeformAttn(_OriginalAttention):
        def forward(self, query, refer_bbox, value, value_shapes, value_mask=None):
            return self._attend(query, refer_bbox, value, value_shapes, value_mask)


class RfDetr:
    class MSDeformAttn(_OriginalAttention):
        def __init__(self, **sizes):
            super().__init__(**sizes)
            self._export = False

        def export(self):
            self._export = True

        def forward(
            self,
            query,
            reference_points,
            input_flatten,
            input_spatial_shapes,
            input_level_start_index,
            input_padding_mask=None,
            input_spatial_shapes_hw=None,
        ):
            return self._attend(query, reference_points, input_flatten, input_spatial_shapes_hw, input_padding_mask)


class _MmcvAttention(_Attention):
    def __init__(self, num_heads=2, num_levels=2, num_points=3, batch_first=False, value_proj_ratio=1.0):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.batch_first = batch_first
        self._build(8, num_heads, [num_points] * num_levels, int(8 * value_proj_ratio))

    def _attend(self, query, value, query_pos, padding, references, shapes):
        value = query if value is None else value
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        points, sizes = [self.num_points] * self.num_levels, shapes.tolist()
        found = self._where(self.num_heads, points, query, references, sizes)
        value = self._projected(self.num_heads, value, padding)
        output = self.output_proj(ms_deform_attn_core_pytorch(value, sizes, *found))
        return output if self.batch_first else output.transpose(0, 1)


class Mmcv:
    class MultiScaleDeformableAttention(_MmcvAttention):
        def __init__(self, dropout=0.1, **sizes):
            super().__init__(**sizes)
            self.embed_dims, self.dropout = 8, nn.Dropout(dropout)

        def forward(
            self,
            query,
            key=None,
            value=None,
            identity=None,
            query_pos=None,
            key_padding_mask=None,
            reference_points=None,
            spatial_shapes=None,
            level_start_index=None,
            **kwargs,
        ):
            output = self._attend(query, value, query_pos, key_padding_mask, reference_points, spatial_shapes)
            return self.dropout(output) + (query if identity is None else identity)


class Detrex:
    class MultiScaleDeformableAttention(_MmcvAttention):
        def __init__(self, dropout=0.1, **sizes):
            super().__init__(**sizes)
            self.embed_dim, self.dropout = 8, nn.Dropout(dropout)

        forward = Mmcv.MultiScaleDeformableAttention.forward


class GroundingDino:
    class MultiScaleDeformableAttention(_MmcvAttention):
        def __init__(self, **sizes):
            super().__init__(**sizes)
            self.embed_dim = 8

        def forward(
            self,
            query,
            key=None,
            value=None,
            query_pos=None,
            key_padding_mask=None,
            reference_points=None,
            spatial_shapes=None,
            level_start_index=None,
            **kwargs,
        ):
            return self._attend(query, value, query_pos, key_padding_mask, reference_points, spatial_shapes)


class RtDetr:
    """Version 1."""

    class MSDeformableAttention(_Attention):
        def __init__(self):
            super().__init__()
            self.num_heads, self.num_levels, self.num_points = 2, 2, 3
            self._build(8, 2, [3, 3], 8)
            self.ms_deformable_attn_core = deformable_attention_core_func

        def forward(self, query, reference_points, value, value_spatial_shapes, value_mask=None):
            found = self._where(2, [3, 3], query, reference_points, value_spatial_shapes)
            value = self._projected(2, value, None if value_mask is None else ~value_mask)
            return self.output_proj(self.ms_deformable_attn_core(value, value_spatial_shapes, *found))


class _ListedAttention(_Attention):
    def __init__(self, num_points=(2, 4), method="default", value_dim=8):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points_list = 2, 2, list(num_points)
        self.offset_scale, self.method = 0.5, method
        self.register_buffer("num_points_scale", torch.tensor([1 / P for P in num_points for _ in range(P)]))
        self._build(8, 2, self.num_points_list, value_dim)
        self.ms_deformable_attn_core = partial(deformable_attention_core_func_v2, method=method)

    def _read(self, query, references, value, shapes):
        found = self._where(2, self.num_points_list, query, references, shapes)
        return self.ms_deformable_attn_core(value, shapes, *found, self.num_points_list)


class RtDetrV2:
    class MSDeformableAttention(_ListedAttention):
        def forward(self, query, reference_points, value, value_spatial_shapes, value_mask=None):
            value = self._projected(2, value, None if value_mask is None else ~value_mask)
            return self.output_proj(self._read(query, reference_points, value, value_spatial_shapes))


class DFine:
    class MSDeformableAttention(_ListedAttention):
        def __init__(self, **options):
            super().__init__(value_dim=None, **options)

        def forward(self, query, reference_points, value, value_spatial_shapes):
            return self._read(query, reference_points, value, value_spatial_shapes)
