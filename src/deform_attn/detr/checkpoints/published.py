"""The published detector: its settings."""

from collections.abc import Mapping
from typing import Any

from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TransformerConfig
from deform_attn.detr.errors import ConfigError

RESNET50: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
}


def published(
    num_classes: int,
    *,
    two_stage: bool = True,
    refine: bool = True,
    backbone: Mapping[str, Any] = RESNET50,
    strides: tuple[int, ...] = (8, 16, 32, 64),
    transformer: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """Return the settings of Deformable DETR as its authors published it (Zhu et al. 2020), without any weights.

    Args:
        num_classes: number of classes. The published weights have 91, since COCO's category ids go up to 90.
        two_stage: whether the queries come from proposals of the encoder.
        refine: whether each decoder layer starts from the boxes of the one before.
        backbone: the configuration of a backbone of transformers; ResNet-50 by default.
        strides: strides of the feature levels, in pixels.
        transformer: fields of `TransformerConfig` that differ from the published ones, such as `num_queries`.

    Example:
        >>> published(91).transformer.num_queries
        300
    """
    settings: dict[str, Any] = {
        "width": 256, "num_heads": 8, "num_points": 4, "feedforward_dim": 1024, "encoder_layers": 6,
        "decoder_layers": 6, "num_queries": 300, "dropout": 0.1, "proposal_size": 0.05, "position_periods": 1.0,
        "position_temperature": 10000.0, "query_position": "fixed", "two_stage": two_stage, "refine": refine,
    }  # fmt: skip
    source = dict(backbone)
    resnet = source.get("model_type") == "resnet"
    frozen = ("network.embedder", "network.encoder.stages.0") if resnet else ()
    return ModelConfig(
        num_classes,
        strides,
        exact_padding=False,
        norm_groups=32,
        backbone=BackboneConfig("transformers", norm="frozen", source=source, frozen=frozen),
        transformer=TransformerConfig(**settings | dict(transformer or {})),
    )


def check_published(config: ModelConfig) -> None:
    """Raise ConfigError naming the first field by which a detector of `config` is another than the published one."""
    like, transformer = published(config.num_classes), config.transformer
    for name in ("exact_padding", "norm_groups"):
        _compare(name, getattr(config, name), getattr(like, name))
    for name in ("name", "norm"):
        _compare(f"backbone.{name}", getattr(config.backbone, name), getattr(like.backbone, name))
    if not isinstance(config.backbone.source, dict) or config.backbone.source.get("model_type") != "resnet":
        raise ConfigError("backbone.source: expected a ResNet; the other project's layout has nothing else")
    for name in ("attention", "query_position", "proposal_size", "position_periods", "position_temperature"):
        _compare(f"transformer.{name}", getattr(transformer, name), getattr(like.transformer, name))


def _compare(name: str, found: object, expected: object) -> None:
    if found != expected:
        raise ConfigError(
            f"{name}: expected {expected!r}, which the other project's layout has, got {found!r}; build the model from "
            "published()"
        )
