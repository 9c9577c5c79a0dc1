"""The module of the GroundingDINO repository: in Python on a CPU, by `groundingdino._C` on a GPU."""

import torch
from doubles import parts
from groundingdino import _C
from torch import nn

MultiScaleDeformableAttnFunction = parts.function_of(_C.ms_deform_attn_forward, _C.ms_deform_attn_backward)


def multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
    return parts.read_by_level(value, value_spatial_shapes, sampling_locations, attention_weights)


class MultiScaleDeformableAttention(nn.Module):
    def __init__(self, embed_dim=256, num_heads=8, num_levels=4, num_points=4, img2col_step=64, batch_first=False):
        super().__init__()
        self.batch_first, self.im2col_step = batch_first, img2col_step
        self.embed_dim, self.num_heads, self.num_levels, self.num_points = embed_dim, num_heads, num_levels, num_points
        parts.add_linear_maps(self, embed_dim, num_heads, [num_points] * num_levels)

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
        value = query if value is None else value
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        heads = parts.heads_of(self.value_proj(value), self.num_heads, key_padding_mask)
        points = [self.num_points] * self.num_levels
        looked = parts.look(self, query, reference_points, spatial_shapes, self.num_heads, points)
        locations, weights = parts.by_level(*looked, self.num_levels)
        if torch.cuda.is_available() and heads.is_cuda:
            read = MultiScaleDeformableAttnFunction.apply(
                heads, spatial_shapes, level_start_index, locations, weights, self.im2col_step
            )
        else:
            read = multi_scale_deformable_attn_pytorch(heads, spatial_shapes, locations, weights)
        output = self.output_proj(read)
        return output if self.batch_first else output.transpose(0, 1)
