"""The module of mmcv, which mmdetection uses, too: in Python on a CPU, by `mmcv._ext` on a GPU."""

import importlib

import torch
from doubles import parts
from torch import nn

ext_module = importlib.import_module("mmcv._ext")


def _backward(value, shapes, starts, locations, weights, gradient, im2col_step):
    gradients = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
    ext_module.ms_deform_attn_backward(
        value, shapes, starts, locations, weights, gradient.contiguous(), *gradients, im2col_step=im2col_step
    )
    return gradients


def _forward(value, shapes, starts, locations, weights, im2col_step):
    locations, weights = locations.type_as(value), weights.type_as(value)
    return ext_module.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step=im2col_step)


MultiScaleDeformableAttnFunction = parts.function_of(_forward, _backward)


def multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
    return parts.read_by_level(value, value_spatial_shapes, sampling_locations, attention_weights)


class MultiScaleDeformableAttention(nn.Module):
    def __init__(
        self,
        embed_dims=256,
        num_heads=8,
        num_levels=4,
        num_points=4,
        im2col_step=64,
        dropout=0.1,
        batch_first=False,
        norm_cfg=None,
        init_cfg=None,
        value_proj_ratio=1.0,
    ):
        super().__init__()
        self.norm_cfg, self.init_cfg = norm_cfg, init_cfg
        self.dropout = nn.Dropout(dropout)
        self.batch_first, self.im2col_step = batch_first, im2col_step
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        parts.add_linear_maps(
            self, embed_dims, num_heads, [num_points] * num_levels, value_channels=int(embed_dims * value_proj_ratio)
        )

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
        value = query if value is None else value
        identity = query if identity is None else identity
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
        return self.dropout(output if self.batch_first else output.transpose(0, 1)) + identity
