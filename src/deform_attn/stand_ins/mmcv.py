"""The names of mmcv's `mmcv.ops.multi_scale_deform_attn`."""

import warnings
from typing import Any

from torch import Tensor, nn

from deform_attn.interop import mmcv as adapter
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs
from deform_attn.stand_ins.fused import Attention, heads_fit, sizes_of
from deform_attn.stand_ins.original import MSDeformAttnFunction, ms_deform_attn_core_pytorch


class MultiScaleDeformableAttention(Attention):
    """mmcv's module, with its arguments, parameters and initialisation; `record` works on it.

    `forward` returns `dropout(attention) + identity`. `query`, `key`, `value`, `identity` and `query_pos` are
    `[Q or S, N, C]`, or `[N, Q or S, C]` with `batch_first`. `key_padding_mask` is `[N, S]` with True = padding,
    `reference_points` is `[N, Q, L, 2 or 4]`, `spatial_shapes` is `[L, 2]`, and `level_start_index` is `[L]`.
    `query_pos` is added to the query alone. If `value` or `identity` is left out, it is the query without `query_pos`.
    `key` is not used.

    Args:
        embed_dims: C, a multiple of num_heads.
        num_heads: M, attention heads.
        num_levels: L, feature maps.
        num_points: P, points per head and level.
        im2col_step: not needed.
        dropout: share of the attention's output that is dropped in training.
        batch_first: whether the batch is the first axis of query, value and identity.
        norm_cfg: stored and not used, as in mmcv.
        init_cfg: stored; `init_weights` initialises the parameters.
        value_proj_ratio: channels of the projected value, as a share of embed_dims.

    Raises:
        ValueError: embed_dims, or its share for value, is not a multiple of num_heads.

    Example:
        >>> import torch
        >>> from deform_attn.stand_ins.mmcv import MultiScaleDeformableAttention
        >>> attention = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, batch_first=True)
        >>> query, value = torch.randn(2, 5, 32), torch.randn(2, 12 * 18 + 6 * 9, 32)
        >>> shapes, starts = torch.tensor([[12, 18], [6, 9]]), torch.tensor([0, 12 * 18])
        >>> points = torch.rand(2, 5, 2, 2)
        >>> attention(
        ...     query, value=value, reference_points=points, spatial_shapes=shapes, level_start_index=starts
        ... ).shape
        torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: Any = None,
        init_cfg: Any = None,
        value_proj_ratio: float = 1.0,
    ) -> None:
        heads_fit("embed_dims", embed_dims, "num_heads", num_heads)
        of_value = int(embed_dims * value_proj_ratio)
        heads_fit("embed_dims * value_proj_ratio", of_value, "num_heads", num_heads)
        super().__init__(embed_dims, of_value, num_heads, num_levels, num_points)
        self.norm_cfg = norm_cfg
        self.init_cfg = init_cfg
        self.dropout = nn.Dropout(dropout)
        self.batch_first = batch_first
        self.im2col_step = im2col_step
        self.embed_dims = embed_dims
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the parameters."""
        self._draw()

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return `dropout(attention) + identity`, laid out as the query; other arguments are not used."""
        sizes = sizes_of(spatial_shapes, level_start_index)
        if "residual" in kwargs:
            identity = adapter.identity_of(identity, kwargs["residual"])
            warnings.warn("residual: this argument is called identity now.", DeprecationWarning, stacklevel=2)
        given = query, key, value, identity, query_pos, key_padding_mask, reference_points, sizes
        return adapter.forward(self, *given)

    def compute_sampling(self, *args: Any, **kwargs: Any) -> tuple[Sampling, Pairs, tuple[int, ...]]:
        """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each."""
        return adapter.compute_sampling(self, *args, **kwargs)


class MultiScaleDeformableAttnFunction(MSDeformAttnFunction):
    """The op under the name of mmcv's autograd function. Coordinates keep their dtype when value is float16."""


def multi_scale_deformable_attn_pytorch(
    value: Tensor, value_spatial_shapes: Any, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Return `[N, Q, M*D]`, as `deform_attn.multi_scale_deformable_attention` does for the same arguments."""
    return ms_deform_attn_core_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights)
