"""The decoder's module of DEIMv2, as D-FINE's: points differ by level, no maps of value and output, value a list."""

import functools

import torch
from doubles import parts
from torch import nn


def deformable_attention_core_func_v2(
    value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method="default"
):
    """Read `value`, a list of `[N, M, D, H*W]`; "discrete" reads the pixel that a location half a pixel on lies in."""
    if method == "default":
        pixels = torch.cat(list(value), dim=-1).permute(0, 3, 1, 2)  # [N, S, M, D]
        return parts.read(pixels, value_spatial_shapes, sampling_locations, attention_weights, num_points_list)
    return _discrete(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list)


def _discrete(value, shapes, locations, weights, points):
    found = []
    for one, (h, w), place in zip(value, shapes, locations.split(points, dim=3), strict=True):
        index = (place * torch.tensor([w, h]) + 0.5).long().clamp(0, h - 1)  # [N, Q, M, P, 2], both axes by the height
        flat = (index[..., 1] * w + index[..., 0]).transpose(1, 2).flatten(2)  # [N, M, Q*P]
        pixels = one.gather(-1, flat[:, :, None].expand(-1, -1, one.shape[2], -1))
        found.append(pixels.unflatten(-1, place.shape[1::2][:1] + place.shape[3:4]))  # [N, M, D, Q, P]
    heads = torch.einsum("nmdqt,nqmt->nqmd", torch.cat(found, dim=-1), weights)
    return heads.flatten(2)


class MSDeformableAttention(nn.Module):
    def __init__(self, embed_dim=256, num_heads=8, num_levels=4, num_points=4, method="default", offset_scale=0.5):
        super().__init__()
        self.embed_dim, self.num_heads, self.num_levels = embed_dim, num_heads, num_levels
        self.offset_scale, self.method = offset_scale, method
        self.num_points_list = num_points if isinstance(num_points, list) else [num_points] * num_levels
        shares = [1 / count for count in self.num_points_list for _ in range(count)]
        self.register_buffer("num_points_scale", torch.tensor(shares, dtype=torch.float32))
        self.total_points = num_heads * sum(self.num_points_list)
        self.head_dim = embed_dim // num_heads
        parts.add_linear_maps(self, embed_dim, num_heads, self.num_points_list, projected=False)
        self.ms_deformable_attn_core = functools.partial(deformable_attention_core_func_v2, method=method)
        if method == "discrete":
            self.sampling_offsets.requires_grad_(False)

    def forward(self, query, reference_points, value, value_spatial_shapes):
        locations, weights = parts.look(
            self,
            query,
            reference_points,
            value_spatial_shapes,
            self.num_heads,
            self.num_points_list,
            scale=self.offset_scale,
        )
        return self.ms_deformable_attn_core(value, value_spatial_shapes, locations, weights, self.num_points_list)
