"""The module of DEIMv2's backbone: the core in Python, which the module keeps as an attribute."""

from doubles import parts
from torch import nn


def ms_deform_attn_core_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
    return parts.read_by_level(value, value_spatial_shapes, sampling_locations, attention_weights)


class MSDeformAttn(nn.Module):
    def __init__(self, d_model=256, n_levels=4, n_heads=8, n_points=4, ratio=1.0):
        super().__init__()
        self.im2col_step = 64
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.ratio = ratio
        parts.add_linear_maps(self, d_model, n_heads, [n_points] * n_levels, value_channels=int(d_model * ratio))
        self.ms_deformable_attn_core = ms_deform_attn_core_pytorch

    def forward(
        self,
        query,
        reference_points,
        input_flatten,
        input_spatial_shapes,
        input_level_start_index,
        input_padding_mask=None,
    ):
        value = parts.heads_of(self.value_proj(input_flatten), self.n_heads, input_padding_mask)
        points = [self.n_points] * self.n_levels
        looked = parts.look(self, query, reference_points, input_spatial_shapes, self.n_heads, points)
        locations, weights = parts.by_level(*looked, self.n_levels)
        return self.output_proj(self.ms_deformable_attn_core(value, input_spatial_shapes, locations, weights))
