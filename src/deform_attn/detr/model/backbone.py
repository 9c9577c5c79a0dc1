"""Backbones: from pictures to feature maps at the strides that are asked for."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deform_attn.detr.config.detector import BackboneConfig, NormKind
from deform_attn.detr.errors import ConfigError
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.model.norm import build_norm, freeze_norms, normalise


class Level(NamedTuple):
    """One feature map: `features [N, C, H, W]` and its `padding_mask [N, H, W]` (True = padding; None: no padding)."""

    features: Tensor
    padding_mask: Tensor | None


def halve_mask(mask: Tensor | None) -> Tensor | None:
    """Return `mask [N, H, W]` at half the size: a pixel is padding if the top left one of the four it stands for is."""
    return None if mask is None else mask[:, ::2, ::2]


def resize_mask(mask: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """Return `mask [N, H, W]` at `size` (H, W), each pixel from the nearest one towards the top left."""
    if mask is None:
        return None
    return nn.functional.interpolate(mask[:, None].float(), size=tuple(size))[:, 0].bool()  # [N, H, W]


class Backbone(nn.Module):
    """A network with `channels`, one number for each of its `strides`: those of the wanted ones that it offers."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def forward(self, images: Tensor, padding_mask: Tensor | None) -> list[Level]:
        """Return a level for each stride of `images [N, 3, H, W]` with `padding_mask [N, H, W]`."""
        raise NotImplementedError


class ConvNormAct(nn.Module):
    """A 3x3 convolution, normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: NormKind, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm = build_norm(norm, out_channels)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return `[N, out, H / stride, W / stride]`, 0 where `mask` of that size is True."""
        return torch.relu_(normalise(self.norm, self.conv(features), mask))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input passes (He et al. 2015)."""

    def __init__(self, channels: int, norm: NormKind) -> None:
        super().__init__()
        self.first = ConvNormAct(channels, channels, norm)
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = build_norm(norm, channels)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Return `[N, C, H, W]`."""
        inner = self.first(features, mask)
        return torch.relu_(features + normalise(self.norm, self.conv(inner), mask))


class Stage(nn.Module):
    """A stride-2 convolution and a residual block."""

    def __init__(self, in_channels: int, out_channels: int, norm: NormKind) -> None:
        super().__init__()
        self.down = ConvNormAct(in_channels, out_channels, norm, stride=2)
        self.block = ResidualBlock(out_channels, norm)

    def forward(self, level: Level) -> Level:
        """Return the level at twice the stride."""
        mask = halve_mask(level.padding_mask)
        return Level(self.block(self.down(level.features, mask), mask), mask)


class SmallBackbone(Backbone):
    """A stem and stages of one residual block, `channels` wide at strides 2, 4, 8, ...; exact under padding."""

    def __init__(self, channels: Sequence[int], norm: NormKind, strides: Sequence[int]) -> None:
        super().__init__()
        offered = {2 << i: width for i, width in enumerate(channels)}
        self.strides = tuple(stride for stride in strides if stride in offered)
        self.channels = tuple(offered[stride] for stride in self.strides)
        depth = max(self.strides, default=2).bit_length() - 1  # stride 2 is the stem, 4 the first stage
        self.stem = ConvNormAct(3, channels[0], norm, stride=2)
        self.stages = nn.ModuleList(Stage(channels[i - 1], channels[i], norm) for i in range(1, depth))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, padding_mask: Tensor | None) -> list[Level]:
        """Return a level for each stride of `images [N, 3, H, W]` with `padding_mask [N, H, W]`."""
        mask = halve_mask(padding_mask)
        level = Level(self.stem(images, mask), mask)
        levels = {2: level}
        for i, stage in enumerate(self.stages):
            level = levels[4 << i] = stage(level)
        return [levels[stride] for stride in self.strides]


class TransformersBackbone(Backbone):
    """A backbone of the transformers library. It sees no masks: at the rim of a padded picture it sees the padding."""

    def __init__(self, source: Mapping[str, Any] | str, norm: NormKind, strides: Sequence[int]) -> None:
        super().__init__()
        with detr_extra():
            from transformers import AutoConfig

        if isinstance(source, str):
            if not os.path.isdir(source):
                advice = "pass a folder with configuration and weights (deform-attn downloads nothing)"
                raise ConfigError(f"BackboneConfig.source: {source!r} is not a folder; {advice}")
            config = AutoConfig.from_pretrained(source, local_files_only=True)
        else:
            entries = dict(source)
            if "model_type" not in entries:
                raise ConfigError('BackboneConfig.source: model_type is missing; add it, such as model_type = "resnet"')
            config = AutoConfig.for_model(**entries)
        network_class, stages = stages_by_stride(config)
        self.strides = tuple(stride for stride in strides if stride in stages)
        config.out_features = [stages[stride] for stride in self.strides]
        if isinstance(source, str):
            self.network = network_class.from_pretrained(source, config=config, local_files_only=True)
        else:
            self.network = network_class(config)
        self.channels = tuple(self.network.channels)
        if norm == "frozen":
            freeze_norms(self.network)
        # Loading a checkpoint must not need the directory that the weights first came from.
        self.source: dict[str, Any] = config.to_dict()

    def forward(self, images: Tensor, padding_mask: Tensor | None) -> list[Level]:
        """Return a level for each stride of `images [N, 3, H, W]` with `padding_mask [N, H, W]`."""
        maps = self.network(images).feature_maps
        return [Level(features, resize_mask(padding_mask, features.shape[-2:])) for features in maps]


def stages_by_stride(config: Any) -> tuple[Any, dict[int, str]]:
    """Return the class for `config` and the deepest stage at each stride, found by a trial without data."""
    from transformers import AutoBackbone

    side, trial_config = 256, type(config).from_dict(config.to_dict())
    trial_config.out_features = list(config.stage_names)
    with torch.device("meta"):
        trial = AutoBackbone.from_config(trial_config).eval()
        maps = trial(torch.zeros(1, 3, side, side)).feature_maps
    stages = {side // features.shape[-1]: name for name, features in zip(config.stage_names, maps, strict=True)}
    return type(trial), stages


def build_backbone(config: BackboneConfig, strides: Sequence[int]) -> Backbone:
    """Return a new backbone with as many of `strides` as it offers."""
    backbone: Backbone
    if config.name == "small" or config.source is None:
        backbone = SmallBackbone(config.channels, config.norm, strides)
    else:
        backbone = TransformersBackbone(config.source, config.norm, strides)
    for part in config.frozen:
        found = [parameter for name, parameter in backbone.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not found:
            names = ", ".join(name for name, _ in backbone.named_modules() if name.count(".") == 1)
            raise ConfigError(f"BackboneConfig.frozen: {part!r} has no parameters; some parts are {names}")
        for parameter in found:
            parameter.requires_grad_(False)
    return backbone
