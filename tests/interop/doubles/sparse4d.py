"""The aggregation of Sparse4D: each camera and scale is read strictly within its map, weighted by group."""

import torch
from torch.nn import functional as F


def deformable_aggregation_function(feature_maps, spatial_shape, scale_start_index, sampling_location, weights):
    """Return `[N, anchors, C]` of maps `[N, S, C]` and locations `[N, anchors, points, cameras, 2]`."""
    N, _, C = feature_maps.shape
    groups = weights.shape[-1]
    output = torch.zeros(N, sampling_location.shape[1], C)
    for camera, scales in enumerate(spatial_shape.tolist()):
        places = sampling_location[:, :, :, camera]  # [N, anchors, points, 2]
        inside = ((places > 0) & (places < 1)).all(-1)
        for scale, (h, w) in enumerate(scales):
            start = int(scale_start_index[camera, scale])
            pixels = feature_maps[:, start : start + h * w].transpose(1, 2).unflatten(-1, (h, w))
            read = F.grid_sample(pixels, 2 * places - 1, align_corners=False)  # [N, C, anchors, points]
            read = torch.where(inside[:, None], read, torch.zeros_like(read)).unflatten(1, (groups, -1))
            output = output + torch.einsum("ngdap,napg->nagd", read, weights[:, :, :, camera, scale]).flatten(2)
    return output
