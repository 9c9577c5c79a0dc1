"""The settings of a detector and of its training: frozen dataclasses that travel as plain dictionaries."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from deform_attn.detr.config.base import Config

NormKind = Literal["batch", "group", "frozen"]
AttentionKind = Literal["deformable", "deformable_single_scale", "dense"]
QueryPosition = Literal["each_layer", "fixed"]
Precision = Literal["float32", "bfloat16", "float16"]

MAX_PIXELS = 2**28
"""Of the largest picture that is read unless told otherwise: 16,384 x 16,384, which take 1 GiB when decoded."""


@dataclass(frozen=True)
class BackboneConfig(Config):
    """Where the features come from.

    `name="small"` is the built-in convolutional network, with `channels` at strides 2, 4, 8, and so on.
    `name="transformers"` is any backbone of that library, made from `source`. This is the dictionary of its
    configuration with its `model_type` (random weights), or a folder with configuration and weights. It downloads
    nothing. `norm` is the normalisation: "batch", or in the built-in network also "group" (groups of 8 channels). The
    latter does not depend on the other images of a batch. With "frozen", the statistics and scales of "batch" never
    change. The parts of the network that `frozen` names, such as "network.embedder", do not learn.
    """

    name: Literal["small", "transformers"] = "small"
    channels: tuple[int, ...] = (24, 48, 96, 128)
    norm: NormKind = "batch"
    source: dict[str, Any] | str | None = None
    frozen: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        channels = bool(self.channels) and min(self.channels) > 0
        self.require(channels, f"channels: must be at least one, all above zero, got {self.channels}")
        self.require(
            self.norm != "group" or all(width % 8 == 0 for width in self.channels),
            f"channels: {self.channels} are not multiples of 8, which norm='group' needs; change them, or the norm",
        )
        self.require(
            self.norm != "group" or self.name == "small", "norm: 'group' is for the built-in backbone; leave norm out"
        )
        self.require(
            self.name == "small" or self.source is not None,
            "source: is missing; name the folder or the configuration of the backbone from transformers",
        )
        self.require(
            self.name != "small" or self.source is None,
            "source: is for name='transformers'; add that, or leave source out",
        )


@dataclass(frozen=True)
class TransformerConfig(Config):
    """The encoder and decoder.

    `attention` is the one difference between the three kinds of detector. It is deformable on all levels, deformable on
    one, or dense on that one as in DETR. `two_stage` takes the queries from the encoder's best proposals instead of
    learning them. A proposal's box has sides of `proposal_size * 2**level`, as fractions of the image. With `refine`
    each decoder layer starts from the boxes of the one before. The sine encoding's frequencies begin with
    `position_periods` waves across the image and fall by the factor `position_temperature`.

    `query_position` says what a query knows of its place. With "each_layer" every decoder layer encodes the box it
    starts from. The content is then learned, or the proposal's features. With "fixed", as published, one position
    serves all layers. Content and position are learned together, or made from the proposal's box. A first layer without
    a box then starts from a point. Proposals learn to separate objects from background, whatever their classes.
    """

    attention: AttentionKind = "deformable"
    width: int = 64
    num_heads: int = 4
    num_points: int = 4
    feedforward_dim: int = 128
    encoder_layers: int = 2
    decoder_layers: int = 3
    num_queries: int = 30
    two_stage: bool = True
    refine: bool = True
    query_position: QueryPosition = "each_layer"
    dropout: float = 0.0
    proposal_size: float = 0.1
    position_periods: float = 4.0
    position_temperature: float = 20.0

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        self.require_above_zero("width", "num_heads", "num_points", "feedforward_dim", "decoder_layers", "num_queries")
        self.require_not_negative("encoder_layers")
        self.require(
            self.width % self.num_heads == 0,
            f"width: {self.width} is not a multiple of num_heads {self.num_heads}; change one",
        )
        self.require(self.width % 8 == 0, f"width: must be a multiple of 8, got {self.width}")
        self.require_above_zero("proposal_size", "position_periods", "position_temperature")
        self.require(0 <= self.dropout < 1, f"dropout: must be at least 0 and below 1, got {self.dropout}")


@dataclass(frozen=True)
class ModelConfig(Config):
    """A detector: `num_classes`, the `strides` of its feature levels, its backbone and its transformer.

    A stride beyond the backbone's is made from its last map by a stride-2 convolution. The kinds of attention that see
    a single level see the one of `single_stride`. `norm_groups` is the number of groups of each map's GroupNorm. Not
    set, it depends on the width.

    With `exact_padding` an image gives the same result alone and padded in a batch: exactly with the built-in
    backbone, nearly with others. Without it, as published, convolutions and normalisations see the padding. An image's
    result then changes a little with its batch, and each level rounds the border of the image to its own pixels.
    """

    num_classes: int
    strides: tuple[int, ...] = (8, 16)
    single_stride: int = 16
    exact_padding: bool = True
    norm_groups: int | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        self.require_above_zero("num_classes")
        self.require(bool(self.strides), "strides: must be at least one number, such as [8, 16]")
        for stride in (*self.strides, self.single_stride):
            is_power = stride >= 2 and stride & (stride - 1) == 0
            self.require(is_power, f"strides: must be powers of two, such as 8 or 16, got {stride}")
        width, groups = self.transformer.width, self.norm_groups
        self.require(
            groups is None or (groups > 0 and width % groups == 0),
            f"norm_groups: must divide the width, {width}, got {groups}",
        )
        self.require(list(self.strides) == sorted(set(self.strides)), f"strides: must ascend, got {self.strides}")

    @property
    def levels(self) -> tuple[int, ...]:
        """The strides that the chosen kind of attention sees."""
        return self.strides if self.transformer.attention == "deformable" else (self.single_stride,)


@dataclass(frozen=True)
class LossConfig(Config):
    """The weights of the three terms, in the matching and in the loss, and the focal loss's `alpha` and `gamma`."""

    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        self.require_not_negative("class_weight", "box_weight", "giou_weight", "gamma")
        self.require(0 <= self.alpha <= 1, f"alpha: must be from 0 to 1, got {self.alpha}")


@dataclass(frozen=True)
class AugmentConfig(Config):
    """How training images are changed at random, in this order.

    `crop` is the range of the share of each side that is kept, 1 to 1 for none. A box stays if at least the share
    `keep` of its area does. `resize` is the range of the factor that scales both sides. The longer side is then at most
    `max_size` pixels. `horizontal_flip` and `vertical_flip` flip half of the images, and `quarter_turns` turns them up
    to three times. They suit images without a left or a top, as those from the air. `brightness`, `contrast` and
    `saturation` are scaled by 1 plus or minus these at most. `hue` moves by at most this part of the colour circle.
    """

    crop: tuple[float, float] = (1.0, 1.0)
    keep: float = 0.4
    resize: tuple[float, float] = (1.0, 1.0)
    max_size: int | None = None
    horizontal_flip: bool = False
    vertical_flip: bool = False
    quarter_turns: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        for name, most in (("crop", 1.0), ("resize", math.inf)):
            values = getattr(self, name)
            pair = len(values) == 2 and 0 < values[0] <= values[1] <= most
            limit = f" at most {most:g}," if most < math.inf else ""
            self.require(pair, f"{name}: must be two numbers above zero, the smaller first,{limit} got {values}")
        self.require(0 < self.keep <= 1, f"keep: must be above 0 and at most 1, got {self.keep}")
        self.require(self.max_size is None or self.max_size > 0, f"max_size: must be above zero, got {self.max_size}")
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            value = getattr(self, name)
            self.require(0 <= value <= most, f"{name}: must be from 0 to {most:g}, got {value}")


@dataclass(frozen=True)
class TrainConfig(Config):
    """A training: AdamW with a linear warm-up, over half of it at most, and a cosine to zero at its end.

    `batch_size` is the number of images per step and process. `offsets_lr_factor` and `backbone_lr_factor` scale the
    learning rate of the sampling offsets and of the backbone. `clip_norm` limits the norm of the gradient. `precision`
    is that of the forward pass, mixed with float32 where that is needed. Weights and losses are always float32. A
    checkpoint is written every `save_every` steps within an epoch, and with 0 only at its end. `workers` processes load
    batches in advance, and with 0 none do. Neither changes the results. `augment` says how training images are changed.
    """

    epochs: int = 7
    batch_size: int = 16
    lr: float = 1e-3
    offsets_lr_factor: float = 1.0
    backbone_lr_factor: float = 1.0
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    clip_norm: float = 1.0
    seed: int = 0
    precision: Precision = "float32"
    save_every: int = 0
    workers: int = 0
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        self.require_above_zero("epochs", "batch_size", "lr", "clip_norm")
        self.require_not_negative(
            "offsets_lr_factor", "backbone_lr_factor", "weight_decay", "warmup_steps", "save_every", "workers"
        )
        self.require(0 <= self.seed < 2**31, f"seed: must be from 0 to {2**31 - 1}, got {self.seed}")
