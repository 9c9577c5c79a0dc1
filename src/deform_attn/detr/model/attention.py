"""The three kinds of attention of a detector behind one interface, so that nothing else differs between them."""

from torch import Tensor, nn

from deform_attn import MultiScaleDeformableAttention
from deform_attn.detr.config.detector import TransformerConfig
from deform_attn.detr.model.pyramid import Pyramid


class FeatureAttention(nn.Module):
    """Attention from queries to the features of a pyramid; its kinds are below."""

    def forward(
        self, query: Tensor, query_position: Tensor, reference: Tensor, features: Tensor, pyramid: Pyramid
    ) -> Tensor:
        """Return what each query reads.

        Args:
            query: `[N, Q, C]`.
            query_position: `[N or 1, Q, C]`, added to the query.
            reference: `[N or 1, Q, 2]` points (x, y) or `[N, Q, 4]` boxes (cx, cy, w, h), fractions of the picture.
            features: `[N, S, C]`.
            pyramid: the layout of `features`.

        Returns:
            `[N, Q, C]`.
        """
        raise NotImplementedError


class DeformableFeatureAttention(FeatureAttention):
    """Each query reads a few points around its reference on every level (Zhu et al. 2020)."""

    def __init__(self, width: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention(
            embed_dim=width, num_heads=num_heads, num_levels=num_levels, num_points=num_points
        )

    def forward(
        self, query: Tensor, query_position: Tensor, reference: Tensor, features: Tensor, pyramid: Pyramid
    ) -> Tensor:
        """Return what each query reads `[N, Q, C]`; the arguments are those of `FeatureAttention`."""
        points = pyramid.references(reference.expand(query.shape[0], -1, -1))
        output: Tensor = self.attention(
            query + query_position, points, features, pyramid.spatial_shapes, padding_mask=pyramid.padding_mask
        )
        return output


class DenseFeatureAttention(FeatureAttention):
    """Each query reads every pixel, as in DETR (Carion et al. 2020); it finds its way by the positions alone."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)

    def forward(
        self, query: Tensor, query_position: Tensor, reference: Tensor, features: Tensor, pyramid: Pyramid
    ) -> Tensor:
        """Return what each query reads `[N, Q, C]`; the arguments are those of `FeatureAttention`."""
        output: Tensor = self.attention(
            query + query_position,
            features + pyramid.position,
            features,
            key_padding_mask=pyramid.padding_mask,
            need_weights=False,
        )[0]
        return output


def build_attention(config: TransformerConfig, num_levels: int) -> FeatureAttention:
    """Return a new attention of the kind that `config` names."""
    if config.attention == "dense":
        return DenseFeatureAttention(config.width, config.num_heads, config.dropout)
    return DeformableFeatureAttention(config.width, config.num_heads, num_levels, config.num_points)
