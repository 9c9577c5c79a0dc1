"""The settings of a detector and of its training: frozen dataclasses that travel as plain dictionaries."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from deform_attn.detr.errors import ConfigError
from deform_attn.detr.norm import NormKind

AttentionKind = Literal["deformable", "deformable_single_scale", "dense"]
Precision = Literal["float32", "bfloat16", "float16"]


def _checked(kind: Any, value: Any, name: str) -> Any:
    """Return `value` as `kind` (lists as tuples, dictionaries as configs); ConfigError naming it if it is none."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type) and issubclass(kind, Config) and isinstance(value, Mapping):
        return kind.from_dict(value)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_checked(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    options = arguments if origin is UnionType else (kind,)
    accepted = tuple(get_origin(option) or option for option in options if get_origin(option) not in (Literal, tuple))
    if accepted and isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool)):
        return value
    expected = kind.__name__ if isinstance(kind, type) and origin is None else str(kind).replace("typing.", "")
    raise ConfigError(f"{name}: expected {expected}, got {value!r}")


class Config:
    """What every config can do: check its fields when made, and go to a dictionary and back."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for entry in fields(self):  # type: ignore[arg-type]
            value = _checked(hints[entry.name], getattr(self, entry.name), f"{type(self).__name__}.{entry.name}")
            object.__setattr__(self, entry.name, value)
        self.check()

    def check(self) -> None:
        """Raise ConfigError if the fields, each of its right type, cannot work together."""

    def require(self, condition: bool, advice: str) -> None:
        """Raise ConfigError with `advice` unless `condition` holds."""
        if not condition:
            raise ConfigError(f"{type(self).__name__}: {advice}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the config that `values` describe; fields left out have their defaults.

        Raises:
            ConfigError: `values` is no mapping, or has an unknown, missing or wrong field, which the message names.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__}: expected a mapping of fields, got {values!r}")
        known = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
        if unknown := sorted(str(name) for name in values if name not in known):
            raise ConfigError(f"{cls.__name__}: unknown field {unknown[0]!r}; the fields are {', '.join(known)}")
        try:
            return cls(**values)
        except TypeError as error:  # a field without a default is missing
            raise ConfigError(f"{cls.__name__}: {error}") from error


@dataclass(frozen=True)
class BackboneConfig(Config):
    """Where the features come from.

    `name="small"` is the built-in convolutional network, with `channels` at strides 2, 4, 8, and so on.
    `name="transformers"` is any backbone of that library, made from `source`: the dictionary of its configuration with
    its `model_type` (random weights), or a directory that holds configuration and weights. Nothing is downloaded.
    `norm` is the built-in network's normalisation: "batch", or "group" (groups of 8 channels), which does not depend on
    the other pictures of a batch.
    """

    name: Literal["small", "transformers"] = "small"
    channels: tuple[int, ...] = (24, 48, 96, 128)
    norm: NormKind = "batch"
    source: dict[str, Any] | str | None = None

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        self.require(bool(self.channels) and min(self.channels) > 0, "channels: at least one, all above zero")
        self.require(
            self.norm == "batch" or all(width % 8 == 0 for width in self.channels),
            f"channels: {self.channels} are no multiples of 8, the groups of norm='group'",
        )
        self.require(self.norm == "batch" or self.name == "small", "norm: a backbone from transformers has its own")
        self.require(
            self.name == "small" or self.source is not None,
            "source: a backbone from transformers needs its configuration or its directory",
        )


@dataclass(frozen=True)
class TransformerConfig(Config):
    """The encoder and decoder.

    `attention` is the one difference between the three kinds of detector: deformable on all levels, deformable on one,
    or dense on that one as in DETR. `two_stage` takes the queries from the encoder's best proposals instead of learning
    them; a proposal's box has sides of `proposal_size * 2**level`, as fractions of the picture. With `refine` each
    decoder layer starts from the boxes of the one before. The sine encoding's frequencies run from `position_periods`
    waves across the picture down by the factor `position_temperature`.
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
    dropout: float = 0.0
    proposal_size: float = 0.1
    position_periods: float = 4.0
    position_temperature: float = 20.0

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        for name in ("width", "num_heads", "num_points", "feedforward_dim", "decoder_layers", "num_queries"):
            self.require(getattr(self, name) > 0, f"{name}: must be above zero")
        self.require(self.encoder_layers >= 0, "encoder_layers: must not be negative")
        self.require(
            self.width % self.num_heads == 0, f"width: {self.width} is no multiple of num_heads {self.num_heads}"
        )
        self.require(self.width % 8 == 0, f"width: {self.width} is no multiple of 8, the groups of its normalisation")
        self.require(0 <= self.dropout < 1, "dropout: must be in [0, 1)")


@dataclass(frozen=True)
class ModelConfig(Config):
    """A detector: `num_classes`, the `strides` of its feature levels, its backbone and its transformer.

    A stride beyond the backbone's is made from its last map by a stride-2 convolution. The kinds of attention that see
    a single level see the one of `single_stride`.
    """

    num_classes: int
    strides: tuple[int, ...] = (8, 16)
    single_stride: int = 16
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        self.require(self.num_classes > 0, "num_classes: must be above zero")
        self.require(bool(self.strides), "strides: at least one level is needed")
        for stride in (*self.strides, self.single_stride):
            self.require(stride >= 2 and stride & (stride - 1) == 0, f"strides: {stride} is no power of two above one")
        self.require(list(self.strides) == sorted(set(self.strides)), "strides: must ascend")

    @property
    def levels(self) -> tuple[int, ...]:
        """The strides that the chosen kind of attention sees."""
        return self.strides if self.transformer.attention == "deformable" else (self.single_stride,)


@dataclass(frozen=True)
class LossConfig(Config):
    """The weights of the three terms, in the matching and in the loss alike, and the focal loss's alpha and gamma."""

    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass(frozen=True)
class TrainConfig(Config):
    """A training: AdamW with a linear warm-up and a cosine down to zero at the end of the last epoch.

    `batch_size` is for each process. `offsets_lr_factor` and `backbone_lr_factor` scale the learning rate of the
    sampling offsets and of the backbone. `precision` is that of the forward pass, mixed with float32 where that is
    needed; weights and losses are always float32. `save_every` steps within an epoch the checkpoint is written, 0: only
    at the end of each. `workers` processes prepare batches ahead, 0: none. The last two leave the results as they are.
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

    def check(self) -> None:
        """Raise ConfigError if the fields cannot work together."""
        for name in ("epochs", "batch_size", "lr", "clip_norm"):
            self.require(getattr(self, name) > 0, f"{name}: must be above zero")
        for name in (
            "offsets_lr_factor",
            "backbone_lr_factor",
            "weight_decay",
            "warmup_steps",
            "save_every",
            "workers",
        ):
            self.require(getattr(self, name) >= 0, f"{name}: must not be negative")
        self.require(0 <= self.seed < 2**31, f"seed: must be in [0, 2**31), got {self.seed}")
