"""The names of Sparse4D's `ops`: points of one head that all scales of a camera, and all groups of channels, share."""

import torch
from torch import Tensor

from deform_attn.functional import multi_scale_deformable_attention
from deform_attn.messages import fail, shape_text
from deform_attn.stand_ins.level_starts import judged_sizes
from deform_attn.stand_ins.ops import in_own_dtype
from deform_attn.tensor_checks import dense, float_tensor

_OFF = -2.0  # a location that reads nothing on a map of any size


def deformable_aggregation_function(
    feature_maps: Tensor,
    spatial_shape: Tensor,
    scale_start_index: Tensor,
    sampling_location: Tensor,
    weights: Tensor,
) -> Tensor:
    r"""Add up the features of all cameras and scales at the points of each anchor.

    Channel c of group g is :math:`\sum_{p, v, s} w_{pvsg} \cdot x^{vs}_c(\phi_{vs}(\hat p_{pv}))` over the points p,
    cameras v and scales s. This is the classic op, with one level for each scale of each camera. A point on or beyond
    the border of a camera's image counts as 0 there: x or y <= 0 or >= 1. (Lin et al. 2023, Sparse4D v2,
    https://arxiv.org/abs/2305.14018)

    Args:
        feature_maps: `[N, S, C]`, camera by camera and scale by scale.
        spatial_shape: integer tensor `[V, L, 2]`, (H, W) of each scale of each of the V cameras.
        scale_start_index: integer tensor `[V, L]`. Levels must be without gaps; this is checked on the CPU only.
        sampling_location: `[N, Q, P, V, 2]` as (x, y), [0, 1] spans the image.
        weights: `[N, Q, P, V, L, G]`, for each of the G groups of C / G channels.

    Returns:
        `[N, Q, C]` in float32, under autocast too, or in float64 if feature_maps is.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> import torch
        >>> from deform_attn.stand_ins.sparse4d import deformable_aggregation_function
        >>> V, G, shapes = 3, 4, [[12, 18], [6, 9]]
        >>> starts = torch.tensor([[0, 216], [270, 486], [540, 756]])
        >>> location, weights = torch.rand(2, 5, 7, V, 2), torch.rand(2, 5, 7, V, 2, G)
        >>> deformable_aggregation_function(
        ...     torch.randn(2, 810, 32), torch.tensor([shapes] * V), starts, location, weights
        ... ).shape
        torch.Size([2, 5, 32])
    """
    _judge(feature_maps, spatial_shape, sampling_location, weights)
    N, Q, P, V, L, G = weights.shape
    dense("scale_start_index", scale_start_index)
    sizes = judged_sizes(spatial_shape.flatten(0, 1), scale_start_index.flatten(), "scale_start_index")
    value = feature_maps.unflatten(-1, (G, -1))  # [N, S, G, D]
    value = value if value.dtype == torch.float64 else value.float()
    beyond = ((sampling_location <= 0) | (sampling_location >= 1)).any(-1, keepdim=True)
    points = torch.where(beyond, _OFF, sampling_location).transpose(2, 3)  # [N, Q, V, P, 2]
    points = points[:, :, :, None].expand(N, Q, V, L, P, 2).flatten(2, 3)  # [N, Q, V*L, P, 2]
    points = points[:, :, None].expand(N, Q, G, V * L, P, 2)
    shares = weights.permute(0, 1, 5, 3, 4, 2).flatten(3, 4)  # [N, Q, G, V*L, P]
    with in_own_dtype(value):
        return multi_scale_deformable_attention(value, sizes, points, shares)


class DeformableAggregationFunction:
    """The op under the name of Sparse4D's autograd function; torch knows all its derivatives."""

    @staticmethod
    def apply(
        mc_ms_feat: Tensor, spatial_shape: Tensor, scale_start_index: Tensor, sampling_location: Tensor, weights: Tensor
    ) -> Tensor:
        """Return `[N, Q, C]`, as `deformable_aggregation_function` does."""
        return deformable_aggregation_function(mc_ms_feat, spatial_shape, scale_start_index, sampling_location, weights)


def _judge(feature_maps: Tensor, spatial_shape: Tensor, sampling_location: Tensor, weights: Tensor) -> None:
    """Judge the axes in which these differ from the classic op, which judges the rest."""
    for name, tensor in (
        ("feature_maps", feature_maps),
        ("sampling_location", sampling_location),
        ("weights", weights),
    ):
        float_tensor(name, tensor)
    fix = "Compare the axes with the function's docstring."
    if weights.ndim != 6:
        fail("weights", "[N, Q, P, V, L, G]", shape_text(weights.shape), fix)
    N, Q, P, V, L, G = weights.shape
    for name, tensor, axes in (
        ("sampling_location", sampling_location, (N, Q, P, V, 2)),
        ("spatial_shape", spatial_shape, (V, L, 2)),
    ):
        if tensor.shape != axes:
            fail(name, f"{shape_text(axes)}, as weights {shape_text(weights.shape)}", shape_text(tensor.shape), fix)
    if feature_maps.ndim != 3 or G == 0 or feature_maps.shape[2] % G:
        fail("feature_maps", f"[N, S, C], C a multiple of G = {G}", shape_text(feature_maps.shape), fix)
