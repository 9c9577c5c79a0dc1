"""The module on one feature map, as the paper's text has it."""

from typing import Never

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn import checks, module_checks, tracing
from deform_attn.functional import deformable_attention
from deform_attn.modules import judged, projections
from deform_attn.recording import Sampling, sampling_of
from deform_attn.shape_checks import Pairs
from deform_attn.signatures import by_name


class DeformableAttention(nn.Module):
    r"""The deformable attention module on one feature map.

    .. math::
        \mathrm{DeformAttn}(z_q, p_q, x) =
            \sum_{m=1}^M W_m \Big[\sum_{k=1}^K A_{mqk} \cdot W'_m x(p_q + \Delta p_{mqk})\Big]

    (Zhu et al. 2020, https://arxiv.org/abs/2010.04159, equation 2)

    =======================  ====================  =====================================================================
    symbol                   shape                 meaning
    =======================  ====================  =====================================================================
    :math:`z_q`              [C]                   content of the query, a row of `query [N, Q, C]`
    :math:`p_q`              [2]                   its reference point (x, y), a row of `reference_points [N, Q, 2]`
    :math:`x`                [C, H, W]             the feature map, from `features [N, C, H, W]`
    :math:`m, k`                                   the M = num_heads heads, the K = num_points points per head
    :math:`\Delta p_{mqk}`   [2]                   sampling offset in pixels, `query_proj(z_q)[: 2*M*K]` as (M, K, 2)
    :math:`A_{mqk}`          scalar in [0, 1]      weight, the softmax over k of `query_proj(z_q)[2*M*K :]` as (M, K)
    :math:`W'_m`             [C/M, C]              `value_proj`, its M blocks of rows
    :math:`W_m`              [C, C/M]              `output_proj`, its M blocks of columns
    =======================  ====================  =====================================================================

    `query_proj` is the one linear projection of 3*M*K channels. x(p) is bilinear, and 0 off the map. The three
    projections have biases. At the start all offsets of a head point in its own direction, k pixels far, and all
    weights are 1/K.

    In the published multi-scale modules offsets and weights come from two linear maps. This module follows the text of
    the paper exactly, with one.

    Args:
        embed_dim: C, channels of query, features and output; a multiple of num_heads.
        num_heads: M, attention heads.
        num_points: K, sampling points per head.

    Raises:
        ValueError, TypeError: a size that does not fit; the message names it.

    Example:
        >>> import torch
        >>> from deform_attn import DeformableAttention
        >>> attention = DeformableAttention(embed_dim=32, num_heads=4)
        >>> query, reference_points, features = torch.randn(2, 5, 32), torch.rand(2, 5, 2), torch.randn(2, 32, 12, 18)
        >>> attention(query, reference_points, features).shape
        torch.Size([2, 5, 32])
    """

    @by_name
    def __init__(self, embed_dim: int, *others: Never, num_heads: int = 8, num_points: int = 4) -> None:
        super().__init__()
        if others:
            fix = "Write DeformableAttention(embed_dim=..., num_heads=..., num_points=...)."
            checks.by_position("DeformableAttention", "embed_dim", others, fix)
        module_checks.sizes(embed_dim, num_heads, num_points=num_points)
        module_checks.projections(embed_dim, embed_dim, 3 * num_heads * num_points)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_points = num_points
        self.query_proj = nn.Linear(embed_dim, 3 * num_heads * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters again."""
        offsets = projections.directional_offsets(self.num_heads, (self.num_points,))
        with torch.no_grad():
            nn.init.zeros_(self.query_proj.weight)
            nn.init.zeros_(self.query_proj.bias)
            self.query_proj.bias[: offsets.numel()] = offsets.flatten()
        projections.reset(self.value_proj, self.output_proj)

    @by_name
    def forward(self, query: Tensor, reference_points: Tensor, features: Tensor, *others: Never) -> Tensor:
        """Return what each query found.

        Args:
            query: `[N, Q, C]`.
            reference_points: (x, y) as fractions of the map, in [0, 1], `[N, Q, 2]`.
            features: `[N, C, H, W]`.

        Returns:
            `[N, Q, C]`.

        Raises:
            ValueError, TypeError: a tensor that does not fit; the message names it.
        """
        if others:
            fix = "Leave out spatial_shapes, level_start_index and a mask: one map needs none of them."
            checks.by_position("DeformableAttention", "query, reference_points, features", others, fix)
        weights = (projections.plain_weight(linear) for linear in (self.query_proj, self.value_proj))
        judged.once(
            lambda: self._judge(query, reference_points, features),
            (query, *weights, reference_points, features),
            ((0, 0),),
            self.embed_dim,
            "one map",
        )
        offsets, logits = self._offsets_and_logits(query)
        value = projections.project(self.value_proj, features.flatten(2).transpose(1, 2))  # [N, H*W, C]
        value = value.unflatten(-1, (self.num_heads, -1))  # [N, H*W, M, D]
        H, W = features.shape[-2:]
        heads = deformable_attention(value, [(H, W)], reference_points, offsets, logits)
        return projections.project(self.output_proj, heads)

    def compute_sampling(
        self, query: Tensor, reference_points: Tensor, features: Tensor
    ) -> tuple[Sampling, Pairs, tuple[int, ...]]:
        """Return where `forward` looks for the same arguments (L = 1), the map's size, and its number of points."""
        self._judge(query, reference_points, features)
        offsets, logits = self._offsets_and_logits(query)
        shapes = ((features.shape[-2], features.shape[-1]),)
        num_points = (self.num_points,)
        return sampling_of(shapes, reference_points, offsets.flatten(3, 4), logits, num_points), shapes, num_points

    def __prepare_scriptable__(self) -> Never:
        """Refuse torch.jit.script, which asks here before it compiles a module."""
        tracing.not_for_script(self)

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_points={self.num_points}"

    def _judge(self, query: Tensor, reference_points: Tensor, features: Tensor) -> bool:
        if is_tracing():
            with tracing.paused():
                return self._judge(query, reference_points, features)
        module_checks.axes("query", query, "N Q C", {"C": self.embed_dim})
        projections.check_like_weight("query", query, self.query_proj)
        N, Q, _ = query.shape
        module_checks.axes("reference_points", reference_points, "N Q 2", {"N": N, "Q": Q, "2": 2})
        module_checks.axes("features", features, "N C H W", {"N": N, "C": self.embed_dim})
        projections.check_like_weight("features", features, self.value_proj)
        return True

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        N, Q, _ = query.shape
        M, K = self.num_heads, self.num_points
        projected = projections.project(self.query_proj, query)  # [N, Q, 3*M*K]
        offsets = projected[..., : 2 * M * K].reshape(N, Q, M, 1, K, 2)
        logits = projected[..., 2 * M * K :].reshape(N, Q, M, K)
        return offsets, logits
