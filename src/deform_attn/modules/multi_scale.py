"""The module on several feature maps, with the parameters of the published checkpoints."""

from collections.abc import Sequence
from typing import Never

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it
from torch.nn import functional as F

from deform_attn import checks, module_checks, shape_checks, tracing
from deform_attn.functional import deformable_attention
from deform_attn.modules import judged, projections
from deform_attn.recording import Sampling, sampling_of
from deform_attn.shape_checks import Pairs
from deform_attn.signatures import by_name


class MultiScaleDeformableAttention(nn.Module):
    r"""The multi-scale deformable attention module of Deformable DETR.

    .. math::
        \mathrm{MSDeformAttn}(z_q, \hat p_q, \{x^l\}_{l=1}^L) =
            \sum_{m=1}^M W_m \Big[\sum_{l=1}^L \sum_{k=1}^K
            A_{mlqk} \cdot W'_m x^l(\phi_l(\hat p_q) + \Delta p_{mlqk})\Big]

    (Zhu et al. 2020, https://arxiv.org/abs/2010.04159, equation 3)

    =======================  ====================  =====================================================================
    symbol                   shape                 meaning
    =======================  ====================  =====================================================================
    :math:`z_q`              [C]                   content of the query, a row of `query [N, Q, C]`
    :math:`\hat p_q`         [2] or [4]            its reference point (x, y), or box (cx, cy, w, h), in [0, 1]
    :math:`x^l`              [C_v, H_l, W_l]       map of level l; all of them flat are `features [N, S, C_v]`
    :math:`\phi_l`                                 scales [0, 1] to the size of level l
    :math:`m, k`                                   the M = num_heads heads, the K = num_points points per head and level
    :math:`\Delta p_{mlqk}`  [2]                   sampling offset, `sampling_offsets(z_q)` as (M, L, K, 2)
    :math:`A_{mlqk}`         scalar in [0, 1]      attention weight, softmax over (l, k) of `attention_weights(z_q)`
    :math:`W'_m`             [C/M, C_v]            `value_proj`, its M blocks of rows
    :math:`W_m`              [C, C/M]              `output_proj`, its M blocks of columns
    =======================  ====================  =====================================================================

    Names and shapes of the parameters are those of every published checkpoint of the original `MSDeformAttn`, and so is
    the initialisation. Masked features count as 0 after `value_proj`, bias included.

    Args:
        embed_dim: C, channels of query and output; a multiple of num_heads.
        num_heads: M, attention heads.
        num_levels: L, feature maps.
        num_points: K, sampling points per head and level; or a list with the count of each level.
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
        """Initialise the parameters again."""
        nn.init.zeros_(self.sampling_offsets.weight)
        offsets = projections.directional_offsets(self.num_heads, self.num_points)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        projections.reset(self.value_proj, self.output_proj)

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
            reference_points: `[N, Q, L or 1, 2]` as (x, y) or `[N, Q, L or 1, 4]` as (cx, cy, w, h). Both are
                fractions of the map, in [0, 1]. The level axis may be left out. With points, offsets are pixels of
                their level. With boxes they are relative to the size of the box (see `deformable_attention`).
            features: `[N, S, C_v]`, the maps one after the other, or a list of L maps `[N, C_v, H, W]`.
            spatial_shapes: L pairs (H, W), or an integer tensor `[L, 2]`; needed with flat features.
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
        shapes = self._shapes(query, features, spatial_shapes)
        offsets, logits = self._offsets_and_logits(query)
        value = projections.project(self.value_proj, features if isinstance(features, Tensor) else _flat(features))
        value = value.unflatten(-1, (self.num_heads, -1))  # [N, S, M, D]
        mask = None if padding_mask is None else module_checks.flat_mask(padding_mask, shapes, query)
        heads = deformable_attention(
            value, shapes, reference_points, offsets, logits, num_points=self.num_points, padding_mask=mask
        )
        output = projections.project(self.output_proj, heads)
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
        """Return where `forward` looks for the same arguments, the sizes of the maps, and the points per level."""
        shapes = shape_checks.spatial_shapes_of(self._shapes(query, features, spatial_shapes))  # of a device it waits
        offsets, logits = self._offsets_and_logits(query)
        return sampling_of(shapes, reference_points, offsets, logits, self.num_points), shapes, self.num_points

    def __prepare_scriptable__(self) -> Never:
        """Refuse torch.jit.script, which asks here before it compiles a module."""
        tracing.not_for_script(self)

    def extra_repr(self) -> str:
        """Return the sizes for `repr`."""
        same = len(set(self.num_points)) == 1
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, num_levels={self.num_levels}, "
            f"num_points={self.num_points[0] if same else list(self.num_points)}"
            + (f", value_dim={self.value_dim}" if self.value_dim != self.embed_dim else "")
        )

    def _shapes(self, query: Tensor, features: Tensor | Sequence[Tensor], spatial_shapes: object) -> Pairs | Tensor:
        """Judge query and features; return the sizes of the maps."""
        maps = (features,) if isinstance(features, Tensor) else features
        if type(maps) is not tuple and type(maps) is not list:
            return self._judged_shapes(query, features, spatial_shapes)
        weights = (projections.plain_weight(linear) for linear in (self.sampling_offsets, self.value_proj))
        # Maps have their sizes themselves, and a map is not the same as a list of one.
        form = "flat" if isinstance(features, Tensor) else "maps" if spatial_shapes is not None else "maps alone"
        sizes = ((0, 0),) if form == "maps alone" else spatial_shapes
        return judged.once(
            lambda: self._judged_shapes(query, features, spatial_shapes),
            (query, *weights, *maps),
            sizes,
            form,
            self.embed_dim,
            self.value_dim,
            self.num_levels,
        )

    def _judged_shapes(
        self, query: Tensor, features: Tensor | Sequence[Tensor], spatial_shapes: object
    ) -> Pairs | Tensor:
        if is_tracing():
            sizes = tracing.sizes(spatial_shapes)
            with tracing.paused():
                shapes = self._judged_shapes(query, features, sizes)
            if not isinstance(features, Tensor):
                sizes = tracing.sizes([x.shape[-2:] for x in features])
            return sizes if isinstance(sizes, Tensor) else shapes
        module_checks.axes("query", query, "N Q C", {"C": self.embed_dim})
        projections.check_like_weight("query", query, self.sampling_offsets)
        batch = query.shape[0]
        if isinstance(features, Tensor):
            module_checks.axes("features", features, "N S C", {"N": batch, "C": self.value_dim})
            shapes = module_checks.flat_shapes(features, spatial_shapes, self.num_levels)
            projections.check_like_weight("features", features, self.value_proj)
            return shapes
        module_checks.feature_maps(features, self.num_levels, self.value_dim, batch)
        shapes = tuple((x.shape[-2], x.shape[-1]) for x in features)
        module_checks.redundant_shapes(spatial_shapes, shapes)
        projections.check_like_weight("features", features[0], self.value_proj)
        return shapes

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        M, T = self.num_heads, sum(self.num_points)
        both = self.sampling_offsets, self.attention_weights
        weights, biases = [projections.plain_weight(linear) for linear in both], [linear.bias for linear in both]
        parts: list[Tensor] = [part for part in (*weights, *biases) if part is not None]
        if len(parts) == 4:
            # One matrix product in place of two; the op reads its two parts where they lie.
            product = F.linear(query, torch.cat(parts[:2]), torch.cat(parts[2:]))
            offsets, logits = torch.split_with_sizes(product, (2 * M * T, M * T), -1)
        else:
            offsets, logits = (linear(query) for linear in both)
        return offsets.unflatten(-1, (M, T, 2)), logits.unflatten(-1, (M, T))  # [N, Q, M, T, 2], [N, Q, M, T]


def _flat(maps: Sequence[Tensor]) -> Tensor:
    """Return maps `[N, C_v, H, W]` one after the other, `[N, S, C_v]`."""
    return torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)
