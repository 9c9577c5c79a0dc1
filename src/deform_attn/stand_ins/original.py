"""The names of the original's `models/ops`: Deformable DETR, and the many projects that copied it."""

from typing import Any

from torch import Tensor

from deform_attn.functional import multi_scale_deformable_attention
from deform_attn.interop import original as adapter
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs
from deform_attn.stand_ins.fused import Attention, heads_fit, sizes_of
from deform_attn.stand_ins.ops import ms_deform_attn_forward


class MSDeformAttn(Attention):
    """The original's module, with its arguments, parameters and initialisation; `record` works on it.

    `forward(query [N, Q, C], reference_points [N, Q, L, 2 or 4], input_flatten [N, S, C], input_spatial_shapes [L, 2],
    input_level_start_index [L], input_padding_mask [N, S] with True = padding)` returns `[N, Q, C]`. Offsets, softmax,
    mask and reads are one op, which stores neither locations nor weights. (Zhu et al. 2020,
    https://arxiv.org/abs/2010.04159)

    Args:
        d_model: C, a multiple of n_heads.
        n_levels: L, feature maps.
        n_heads: M, attention heads.
        n_points: P, points per head and level.

    Raises:
        ValueError: d_model is not a multiple of n_heads.

    Example:
        >>> import torch
        >>> from deform_attn.stand_ins.original import MSDeformAttn
        >>> attention = MSDeformAttn(d_model=32, n_levels=2, n_heads=4, n_points=3)
        >>> shapes, starts = torch.tensor([[12, 18], [6, 9]]), torch.tensor([0, 12 * 18])
        >>> query, reference_points = torch.randn(2, 5, 32), torch.rand(2, 5, 2, 2)
        >>> attention(query, reference_points, torch.randn(2, 12 * 18 + 6 * 9, 32), shapes, starts).shape
        torch.Size([2, 5, 32])
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        heads_fit("d_model", d_model, "n_heads", n_heads)
        super().__init__(d_model, d_model, n_heads, n_levels, n_points)
        self.im2col_step = 64  # of no use here; callers set it
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        self._draw()

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return what each query found on all levels, `[N, Q, C]`."""
        sizes = sizes_of(input_spatial_shapes, input_level_start_index)
        given = query, reference_points, input_flatten, sizes, input_level_start_index, input_padding_mask
        return adapter.forward(self, *given)

    def compute_sampling(self, *args: Any, **kwargs: Any) -> tuple[Sampling, Pairs, tuple[int, ...]]:
        """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each."""
        return adapter.compute_sampling(self, *args, **kwargs)


class MSDeformAttnFunction:
    """The op under the name of the original's autograd function; torch knows all its derivatives."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: Any,
    ) -> Tensor:
        """Return `[N, Q, M*D]`; the arguments are those of `deform_attn.stand_ins.ops.ms_deform_attn_forward`."""
        sizes = value_spatial_shapes, value_level_start_index
        return ms_deform_attn_forward(value, *sizes, sampling_locations, attention_weights, im2col_step)


def ms_deform_attn_core_pytorch(
    value: Tensor, value_spatial_shapes: Any, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Return `[N, Q, M*D]`, as `deform_attn.multi_scale_deformable_attention` does for the same arguments."""
    return multi_scale_deformable_attention(value, value_spatial_shapes, sampling_locations, attention_weights)
