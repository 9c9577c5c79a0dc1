"""The module of the Mask2Former and MaskDINO repositories: where the extension raises, Python steps in."""

import MultiScaleDeformableAttention as MSDA
from doubles import parts
from torch import nn

MSDeformAttnFunction = parts.function_of(MSDA.ms_deform_attn_forward, MSDA.ms_deform_attn_backward)


def ms_deform_attn_core_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
    return parts.read_by_level(value, value_spatial_shapes, sampling_locations, attention_weights)


class MSDeformAttn(nn.Module):
    def __init__(self, d_model=256, n_levels=4, n_heads=8, n_points=4):
        super().__init__()
        self.im2col_step = 128
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        parts.add_linear_maps(self, d_model, n_heads, [n_points] * n_levels)

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
        try:
            read = MSDeformAttnFunction.apply(
                value, input_spatial_shapes, input_level_start_index, locations, weights, self.im2col_step
            )
        except RuntimeError:  # "Not implemented on the CPU"; the projects catch all
            read = ms_deform_attn_core_pytorch(value, input_spatial_shapes, locations, weights)
        return self.output_proj(read)
