"""Normalisation of feature maps that are padded."""

import torch
from torch import Tensor, nn

from deform_attn.detr.config.detector import NormKind


def blank(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return `features [N, C, H, W]` with zeros where `mask [N, H, W]` is True.

    A convolution then sees beyond a padded picture what it sees beyond a picture without padding.
    """
    return features if mask is None else features.masked_fill(mask[:, None], 0)


class PaddedGroupNorm(nn.GroupNorm):
    """GroupNorm over the pixels of the picture: the padding neither counts nor stays.

    Mean and variance are computed in float32 at least; the result has the dtype of the features.
    """

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `features [N, C, H, W]` normalised where `mask [N, H, W]` is False, and 0 where it is True."""
        if mask is None:
            return super().forward(features).to(features.dtype)  # torch's own sums are in float32 at least
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        valid = (~mask).flatten(1)[:, None, None].to(exact.dtype)  # [N, 1, 1, H*W]
        grouped = exact.unflatten(1, (self.num_groups, -1)).flatten(3)  # [N, groups, C / groups, H*W]
        count = valid.sum((2, 3), keepdim=True) * grouped.shape[2]
        mean = (grouped * valid).sum((2, 3), keepdim=True) / count
        variance = ((grouped - mean).square() * valid).sum((2, 3), keepdim=True) / count
        normal = ((grouped - mean) * (variance + self.eps).rsqrt()).view(features.shape)  # [N, C, H, W]
        scaled = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return blank(scaled.to(features.dtype), mask)


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose statistics, scale and shift are constants that training leaves alone.

    Batches of one or two large pictures would spoil the statistics of a pretrained network.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Return `features [N, C, H, W]` scaled and shifted."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return features * scale[:, None, None] + shift[:, None, None]


def freeze_norms(network: nn.Module) -> None:
    """Put a FrozenBatchNorm of the same values in the place of every BatchNorm2d inside `network`."""
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            frozen = FrozenBatchNorm(module.num_features, module.eps)
            frozen.load_state_dict({key: module.state_dict()[key] for key in frozen.state_dict()})
            setattr(network, name, frozen)
        else:
            freeze_norms(module)


def build_norm(kind: NormKind, channels: int) -> nn.Module:
    """Return a new normalisation of maps with so many `channels`: over the batch, in groups of 8 channels, or none yet.

    A frozen one begins as the identity, for a network whose weights are loaded.
    """
    if kind == "frozen":
        return FrozenBatchNorm(channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else PaddedGroupNorm(channels // 8, channels)


def normalise(norm: nn.Module, features: Tensor, mask: Tensor | None) -> Tensor:
    """Return `features [N, C, H, W]` normalised, and 0 where `mask [N, H, W]` is True."""
    normal: Tensor = norm(features, mask) if isinstance(norm, PaddedGroupNorm) else blank(norm(features), mask)
    return normal
