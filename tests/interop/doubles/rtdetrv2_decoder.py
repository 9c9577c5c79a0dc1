"""The decoder's module of RT-DETRv2 as DEIMv2 keeps it: points may differ by level, its mask is true where valid."""

import functools

import torch
from doubles import parts
from torch import nn


def deformable_attention_core_func_v2(
    value,
    value_spatial_shapes,
    sampling_locations,
    attention_weights,
    num_points_list,
    method="default",
    value_shape="default",
):
    assert (method, value_shape) == ("default", "reshape")  # of which there are recorded numbers
    return parts.read(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list)


class MSDeformableAttention(nn.Module):
    def __init__(
        self,
        embed_dim=256,
        num_heads=8,
        num_levels=4,
        num_points=4,
        method="default",
        offset_scale=0.5,
        value_shape="default",
    ):
        super().__init__()
        self.embed_dim, self.num_heads, self.num_levels = embed_dim, num_heads, num_levels
        self.offset_scale, self.method = offset_scale, method
        self.num_points_list = num_points if isinstance(num_points, list) else [num_points] * num_levels
        shares = [1 / count for count in self.num_points_list for _ in range(count)]
        self.register_buffer("num_points_scale", torch.tensor(shares, dtype=torch.float32))
        self.total_points = num_heads * sum(self.num_points_list)
        self.head_dim = embed_dim // num_heads
        parts.add_linear_maps(self, embed_dim, num_heads, self.num_points_list)
        self.ms_deformable_attn_core = functools.partial(
            deformable_attention_core_func_v2, method=method, value_shape=value_shape
        )

    def forward(self, query, reference_points, value, value_spatial_shapes, value_mask=None):
        padding = None if value_mask is None else ~value_mask
        heads = parts.heads_of(self.value_proj(value), self.num_heads, padding)
        locations, weights = parts.look(
            self,
            query,
            reference_points,
            value_spatial_shapes,
            self.num_heads,
            self.num_points_list,
            scale=self.offset_scale,
        )
        read = self.ms_deformable_attn_core(heads, value_spatial_shapes, locations, weights, self.num_points_list)
        return self.output_proj(read)
