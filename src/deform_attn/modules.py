"""The two modules: deformable attention with its projections, on one map and on several."""

import math
from collections.abc import Sequence
from typing import Never, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deform_attn import checks, module_checks, shape_checks, torch_names
from deform_attn.functional import deformable_attention
from deform_attn.recording import Sampling, sampling_of
from deform_attn.shape_checks import Pairs
from deform_attn.signatures import by_name


class DeformableAttention(nn.Module):
    r"""The deformable attention module on one feature map.

    .. math::
        \mathrm{DeformAttn}(z_q, p_q, x) =
            \sum_{m=1}^M W_m \Big[\sum_{k=1}^K A_{mqk} \cdot W'_m x(p_q + \Delta p_{mqk})\Big]

    (Zhu et al. 2020, https://arxiv.org/abs/2010.04159, equation 2)

    ==================  ====================  =====================================================================
    symbol              shape                 meaning
    ==================  ====================  =====================================================================
    z_q                 [C]                   content of the query, a row of `query [N, Q, C]`
    p_q                 [2]                   its reference point (x, y), a row of `reference_points [N, Q, 2]`
    x                   [C, H, W]             the feature map, from `features [N, C, H, W]`
    m, k                                      the M = num_heads heads, the K = num_points points a head
    Delta p_mqk         [2]                   sampling offset in pixels, `query_proj(z_q)[: 2*M*K]` as (M, K, 2)
    A_mqk               scalar in [0, 1]      attention weight, softmax over k of `query_proj(z_q)[2*M*K :]` as (M, K)
    W'_m                [C/M, C]              `value_proj`, its M blocks of rows
    W_m                 [C, C/M]              `output_proj`, its M blocks of columns
    ==================  ====================  =====================================================================

    `query_proj` is the one linear projection of 3*M*K channels. x(p) is bilinear, and 0 off the map. The three
    projections have biases. At the start all offsets of a head point in its own direction, k pixels far, and all
    weights are 1/K.

    Unlike the published multi-scale modules, whose offsets and weights come from two linear maps, this one follows the
    paper's text to the letter with one.

    Args:
        embed_dim: C, channels of query, features and output; a multiple of num_heads.
        num_heads: M.
        num_points: K.

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
        """Draw the parameters anew."""
        offsets = directional_offsets(self.num_heads, (self.num_points,))
        with torch.no_grad():
            nn.init.zeros_(self.query_proj.weight)
            nn.init.zeros_(self.query_proj.bias)
            self.query_proj.bias[: offsets.numel()] = offsets.flatten()
        _reset_projections(self.value_proj, self.output_proj)

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
        offsets, logits = self._offsets_and_logits(query, reference_points)
        module_checks.axes("features", features, "N C H W", {"N": query.shape[0], "C": self.embed_dim})
        _check_like_weight("features", features, self.value_proj)
        value = self.value_proj(features.flatten(2).transpose(1, 2))  # [N, H*W, C]
        value = value.unflatten(-1, (self.num_heads, -1))  # [N, H*W, M, D]
        H, W = features.shape[-2:]
        heads = deformable_attention(value, [(H, W)], reference_points, offsets, logits)
        return self.output_proj(heads)

    def compute_sampling(
        self, query: Tensor, reference_points: Tensor, features: Tensor
    ) -> tuple[Sampling, Pairs, tuple[int, ...]]:
        """Return where `forward` looks for the same arguments, with L = 1, the map's size, and its number of points."""
        offsets, logits = self._offsets_and_logits(query, reference_points)
        shapes = ((features.shape[-2], features.shape[-1]),)
        num_points = (self.num_points,)
        return sampling_of(shapes, reference_points, offsets.flatten(3, 4), logits, num_points), shapes, num_points

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_points={self.num_points}"

    def _offsets_and_logits(self, query: Tensor, reference_points: Tensor) -> tuple[Tensor, Tensor]:
        module_checks.axes("query", query, "N Q C", {"C": self.embed_dim})
        _check_like_weight("query", query, self.query_proj)
        N, Q, _ = query.shape
        module_checks.axes("reference_points", reference_points, "N Q 2", {"N": N, "Q": Q, "2": 2})
        M, K = self.num_heads, self.num_points
        projected = self.query_proj(query)  # [N, Q, 3*M*K]
        offsets = projected[..., : 2 * M * K].reshape(N, Q, M, 1, K, 2)
        logits = projected[..., 2 * M * K :].reshape(N, Q, M, K)
        return offsets, logits


class MultiScaleDeformableAttention(nn.Module):
    r"""The multi-scale deformable attention module of Deformable DETR.

    .. math::
        \mathrm{MSDeformAttn}(z_q, \hat p_q, \{x^l\}_{l=1}^L) =
            \sum_{m=1}^M W_m \Big[\sum_{l=1}^L \sum_{k=1}^K
            A_{mlqk} \cdot W'_m x^l(\phi_l(\hat p_q) + \Delta p_{mlqk})\Big]

    (Zhu et al. 2020, https://arxiv.org/abs/2010.04159, equation 3)

    ==================  ====================  =====================================================================
    symbol              shape                 meaning
    ==================  ====================  =====================================================================
    z_q                 [C]                   content of the query, a row of `query [N, Q, C]`
    \hat p_q            [2] or [4]            its reference point (x, y), or box (cx, cy, w, h), in [0, 1]
    x^l                 [C_v, H_l, W_l]       map of level l; all of them flat are `features [N, S, C_v]`
    \phi_l                                    scales [0, 1] to the size of level l
    m, k                                      the M = num_heads heads, the K = num_points points a head and level
    Delta p_mlqk        [2]                   sampling offset, `sampling_offsets(z_q)` as (M, L, K, 2)
    A_mlqk              scalar in [0, 1]      attention weight, softmax over (l, k) of `attention_weights(z_q)`
    W'_m                [C/M, C_v]            `value_proj`, its M blocks of rows
    W_m                 [C, C/M]              `output_proj`, its M blocks of columns
    ==================  ====================  =====================================================================

    Names and shapes of the parameters are those of every published checkpoint of the original `MSDeformAttn`, and so is
    the initialisation. Masked features count as 0 after `value_proj`, bias included.

    Args:
        embed_dim: C, channels of query and output; a multiple of num_heads.
        num_heads: M.
        num_levels: L.
        num_points: K, or one count for each level.
        value_dim: C_v, channels of the features, if other than embed_dim.
        bias: whether `value_proj` and `output_proj` have a bias; `sampling_offsets` and `attention_weights` always do.

    Raises:
        ValueError, TypeError: a size that does not fit; the message names it.

    Example:
        >>> import torch
        >>> from deform_attn import MultiScaleDeformableAttention
        >>> attention = MultiScaleDeformableAttention(embed_dim=32, num_heads=4, num_levels=2)
        >>> query, reference_points = torch.randn(2, 5, 32), torch.rand(2, 5, 2)
        >>> maps = [torch.randn(2, 32, 12, 18), torch.randn(2, 32, 6, 9)]
        >>> attention(query, reference_points, maps).shape
        torch.Size([2, 5, 32])
    """

    @by_name
    def __init__(
        self,
        embed_dim: int = 256,
        *others: Never,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int | Sequence[int] = 4,
        value_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if others:
            fix = (
                "The original's order is MSDeformAttn(d_model, n_levels, n_heads, n_points); here write "
                "MultiScaleDeformableAttention(embed_dim=..., num_levels=..., num_heads=..., num_points=...)."
            )
            checks.by_position("MultiScaleDeformableAttention", "embed_dim", others, fix)
        value_dim = embed_dim if value_dim is None else value_dim
        module_checks.sizes(embed_dim, num_heads, num_levels=num_levels, value_dim=value_dim)
        module_checks.flag("bias", bias)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = checks.point_counts(num_points, num_levels)
        self.value_dim = value_dim
        T = sum(self.num_points)
        module_checks.projections(embed_dim, value_dim, 2 * num_heads * T)
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * T * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * T)
        self.value_proj = nn.Linear(value_dim, embed_dim, bias=bias)
        self.output_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(directional_offsets(self.num_heads, self.num_points).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        _reset_projections(self.value_proj, self.output_proj)

    @by_name
    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        features: Tensor | Sequence[Tensor],
        spatial_shapes: Sequence[tuple[int, int]] | Tensor | None = None,
        *others: Never,
        padding_mask: Tensor | Sequence[Tensor] | None = None,
        return_sampling: bool = False,
    ) -> Tensor | tuple[Tensor, Sampling]:
        """Return what each query found on all levels.

        Args:
            query: `[N, Q, C]`.
            reference_points: `[N, Q, L or 1, 2]` as (x, y) or `[N, Q, L or 1, 4]` as (cx, cy, w, h), as fractions of
                the map, in [0, 1]; the level axis may be left out. Offsets are pixels of their level beside points, and
                relative to the size of the box beside boxes (see `deformable_attention`).
            features: `[N, S, C_v]`, the maps one after the other, or a list of L maps `[N, C_v, H, W]`.
            spatial_shapes: L pairs (H, W), or an integer tensor `[L, 2]`; needed beside flat features.
            padding_mask: `[N, S]` bool, True = padding; or a list of masks `[N, H, W]`.
            return_sampling: whether to return where it looked, too.

        Returns:
            `[N, Q, C]`, or `(output, Sampling(locations, weights))`.

        Raises:
            ValueError, TypeError: a tensor that does not fit; the message names it.
        """
        if others:
            fix = "Leave out level_start_index: it is not needed. Pass padding_mask by name."
            names = "query, reference_points, features, spatial_shapes"
            checks.by_position("MultiScaleDeformableAttention", names, others, fix)
        module_checks.flag("return_sampling", return_sampling)
        offsets, logits = self._offsets_and_logits(query)
        flat, shapes = self._flatten(features, spatial_shapes, query.shape[0])
        value = self.value_proj(flat).unflatten(-1, (self.num_heads, -1))  # [N, S, M, D]
        mask = module_checks.flat_mask(padding_mask, shapes, query.shape[0])
        heads = deformable_attention(
            value, shapes, reference_points, offsets, logits, num_points=self.num_points, padding_mask=mask
        )
        output: Tensor = self.output_proj(heads)
        if return_sampling:
            return output, sampling_of(shapes, reference_points, offsets, logits, self.num_points)
        return output

    def compute_sampling(
        self,
        query: Tensor,
        reference_points: Tensor,
        features: Tensor | Sequence[Tensor],
        spatial_shapes: Sequence[tuple[int, int]] | Tensor | None = None,
        *,
        padding_mask: Tensor | Sequence[Tensor] | None = None,
        return_sampling: bool = False,
    ) -> tuple[Sampling, Pairs, tuple[int, ...]]:
        """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each."""
        offsets, logits = self._offsets_and_logits(query)
        _, shapes = self._flatten(features, spatial_shapes, query.shape[0])
        shapes = shape_checks.spatial_shapes_of(shapes)  # of a device it waits
        return sampling_of(shapes, reference_points, offsets, logits, self.num_points), shapes, self.num_points

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        same = len(set(self.num_points)) == 1
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_levels={self.num_levels}, "
            f"num_points={self.num_points[0] if same else list(self.num_points)}"
            + (f", value_dim={self.value_dim}" if self.value_dim != self.embed_dim else "")
        )

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        module_checks.axes("query", query, "N Q C", {"C": self.embed_dim})
        _check_like_weight("query", query, self.sampling_offsets)
        M, T = self.num_heads, sum(self.num_points)
        both = (self.sampling_offsets, self.attention_weights)
        if all(_is_plain(linear) and linear.bias is not None for linear in both):
            # One matrix product in place of two; the op reads its two parts where they lie.
            weight, bias = (torch.cat([getattr(linear, name) for linear in both]) for name in ("weight", "bias"))
            offsets, logits = F.linear(query, weight, bias).split([2 * M * T, M * T], dim=-1)
        else:
            offsets, logits = (linear(query) for linear in both)
        return offsets.unflatten(-1, (M, T, 2)), logits.unflatten(-1, (M, T))  # [N, Q, M, T, 2], [N, Q, M, T]

    def _flatten(
        self, features: Tensor | Sequence[Tensor], spatial_shapes: object, batch: int
    ) -> tuple[Tensor, Pairs | Tensor]:
        """Return the features as `[N, S, C_v]`, and the sizes of their maps."""
        if isinstance(features, Tensor):
            module_checks.axes("features", features, "N S C", {"N": batch, "C": self.value_dim})
            shapes = module_checks.flat_shapes(features, spatial_shapes, self.num_levels)
        else:
            module_checks.feature_maps(features, self.num_levels, self.value_dim, batch)
            shapes = tuple((x.shape[-2], x.shape[-1]) for x in features)
            module_checks.redundant_shapes(spatial_shapes, shapes)
            features = torch.cat([x.flatten(2) for x in features], dim=2).transpose(1, 2)
        _check_like_weight("features", features, self.value_proj)
        return features, shapes


def directional_offsets(num_heads: int, num_points: Sequence[int]) -> Tensor:
    """Return the offsets at initialisation `[M, T, 2]`: head m in direction 2*pi*m/M, its k-th point k steps far."""
    angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)  # onto the square around the reference
    steps = torch.cat([torch.arange(1, P + 1) for P in num_points])
    return directions[:, None] * steps[:, None]


def _reset_projections(*projections: nn.Linear) -> None:
    for projection in projections:
        nn.init.xavier_uniform_(projection.weight)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)


def _is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether calling `linear` does nothing but its matrix product, so that the product may be taken elsewhere.

    Hooks must be called, and so must parametrisations, adapters and quantised layers, which put another class in its
    place or in that of its weight.
    """
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and (linear.bias is None or type(linear.bias) is nn.Parameter)
        and not (linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks)
        and not linear._backward_pre_hooks
        and "forward" not in vars(linear)
        and not torch_names.hooks_on_all_modules()
    )


def _check_like_weight(name: str, tensor: Tensor, linear: nn.Module) -> None:
    if _is_plain(linear):
        module_checks.like_weight(name, tensor, linear.weight)
