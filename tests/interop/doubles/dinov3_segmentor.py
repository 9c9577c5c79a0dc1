"""The module of dinov3's segmentor: forward in Python, backward by the extension, without which it raises."""

from doubles import parts
from torch import nn

try:
    import MultiScaleDeformableAttention as MSDA
except ImportError:
    MSDA = None


def ms_deform_attn_core_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights):
    return parts.read_by_level(value, value_spatial_shapes, sampling_locations, attention_weights)


def _forward(value, shapes, starts, locations, weights, im2col_step):
    return ms_deform_attn_core_pytorch(value, shapes, locations, weights)


def _backward(*arguments):
    if MSDA is None:
        raise RuntimeError("the compiled extension is needed for a backward pass")
    return MSDA.ms_deform_attn_backward(*arguments)


MSDeformAttnFunction = parts.function_of(_forward, _backward)


class MSDeformAttn(nn.Module):
    def __init__(self, d_model=256, n_levels=4, n_heads=8, n_points=4, ratio=1.0):
        super().__init__()
        self.im2col_step = 64
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.ratio = ratio
        parts.add_linear_maps(self, d_model, n_heads, [n_points] * n_levels, value_channels=int(d_model * ratio))

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
        read = MSDeformAttnFunction.apply(
            value, input_spatial_shapes, input_level_start_index, locations, weights, self.im2col_step
        )
        return self.output_proj(read)
