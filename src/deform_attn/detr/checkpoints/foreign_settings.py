"""Foreign settings: those of a detector in the words of transformers, and those that a file of the authors shows."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from deform_attn.detr.checkpoints.published import RESNET50, check_published, published
from deform_attn.detr.config.detector import ModelConfig
from deform_attn.detr.errors import CheckpointError, ConfigError
from deform_attn.detr.extra import detr_extra
from deform_attn.detr.model.backbone import stages_by_stride

_TIMM = {  # kind of block and depths of the networks of which timm and transformers have the same
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
    "resnet152": ("bottleneck", [3, 8, 36, 3]),
}

_FIXED = {"num_channels": 3, "position_embedding_type": "sine", "dilation": False, "activation_function": "relu"}
"""Options of a transformers configuration, and the one value that a detector can have."""

_TWINS = ("attention_heads", "ffn_dim", "n_points")
"""What the encoder and the decoder of a transformers configuration may have apart, and a detector has together."""


def from_transformers(values: Mapping[str, Any]) -> ModelConfig:
    """Return the settings that the configuration `values` of a `DeformableDetrForObjectDetection` describes.

    Its dropout is that of `dropout`; what it says about losses and initial weights does not matter here.

    Raises:
        ConfigError: an option that a detector does not have; the message names it.
    """
    with detr_extra():
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, DeformableDetrConfig
    try:
        config = DeformableDetrConfig.from_dict(dict(values))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"not a configuration of transformers' Deformable DETR ({error})") from error
    for name, value in _FIXED.items():
        if (found := getattr(config, name)) != value:
            raise ConfigError(f"{name}: {found!r} is not supported, only {value!r}")
    for name in _TWINS:
        first, second = getattr(config, f"encoder_{name}"), getattr(config, f"decoder_{name}")
        if first != second:
            raise ConfigError(f"encoder_{name}: {first} and decoder_{name} {second} must be the same")
    source = config.backbone_config.to_dict()
    if source["model_type"] == "timm_backbone":
        source = _from_timm(source)
    if source["model_type"] != "resnet":
        raise ConfigError(
            f"backbone_config: {source['model_type']!r} is not supported, only 'resnet' and timm's ResNets"
        )
    names = stages_by_stride(AutoConfig.for_model(**source))[1]
    wanted = source["out_features"]
    strides = [stride for stride, name in names.items() if name in wanted]
    levels = config.num_feature_levels
    if len(strides) != len(wanted) or len(strides) > levels:
        raise ConfigError(f"backbone_config: out_features {wanted} are not {levels} levels or fewer of {names}")
    while len(strides) < levels:
        strides.append(2 * strides[-1])
    return published(
        config.num_labels,
        two_stage=config.two_stage,
        refine=config.with_box_refine,
        backbone=source,
        strides=tuple(strides),
        transformer={
            "width": config.d_model,
            "num_heads": config.encoder_attention_heads,
            "num_points": config.encoder_n_points,
            "feedforward_dim": config.encoder_ffn_dim,
            "encoder_layers": config.encoder_layers,
            "decoder_layers": config.decoder_layers,
            "num_queries": config.two_stage_num_proposals if config.two_stage else config.num_queries,
            "dropout": config.dropout,
        },
    )


def _from_timm(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of transformers' ResNet for that of the same network of timm."""
    name = str(source["backbone"]).partition(".")[0]
    if name not in _TIMM:
        raise ConfigError(f"backbone: {source['backbone']!r} is not supported, only {', '.join(_TIMM)}")
    kind, depths = _TIMM[name]
    widths = [width * (4 if kind == "bottleneck" else 1) for width in (64, 128, 256, 512)]
    stages = [f"stage{i}" for i in source["out_indices"]]
    return RESNET50 | {"hidden_sizes": widths, "depths": depths, "layer_type": kind, "out_features": stages}


def to_transformers(config: ModelConfig) -> dict[str, Any]:
    """Return the settings of transformers' configuration for a detector of `config`.

    Raises:
        ConfigError: it is not the published detector; the message names the field that differs.
    """
    check_published(config)
    transformer = config.transformer
    if transformer.two_stage and not transformer.refine:
        raise ConfigError("refine: transformers has no two-stage detector without refinement")
    queries, dropout = transformer.num_queries, transformer.dropout
    return {
        "model_type": "deformable_detr",
        "architectures": ["DeformableDetrForObjectDetection"],
        "backbone_config": config.backbone.source,
        "d_model": transformer.width,
        **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in (
            ("attention_heads", transformer.num_heads),
            ("n_points", transformer.num_points),
            ("ffn_dim", transformer.feedforward_dim),
            ("layers", getattr(transformer, f"{part}_layers")),
        )},
        "num_queries": queries,
        "two_stage_num_proposals": queries,
        "num_feature_levels": len(config.strides),
        "dropout": dropout,
        "attention_dropout": dropout,
        "activation_dropout": dropout,
        "two_stage": transformer.two_stage,
        "with_box_refine": transformer.refine,
    }  # fmt: skip


def from_original(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> ModelConfig:
    """Return the settings of a checkpoint of the authors' repository.

    Args:
        tensors: by name.
        arguments: the options of its training, as far as they are known; they have the number of heads (8 if missing),
            which no tensor shows, that of a two-stage detector's queries (300) and the dropout (0.1).

    Raises:
        CheckpointError: a tensor is missing.
        ConfigError: an option that a detector does not have; the message names it.
    """
    for name, value in (("dilation", False), ("position_embedding", "sine"), ("masks", False)):
        if arguments.get(name, value) != value:
            raise ConfigError(f"{name}: {arguments[name]!r} is not supported, only {value!r}")

    def size(name: str, axis: int = 0) -> int:
        if name not in tensors:
            raise CheckpointError(f"lacks tensor {name}; pass a Deformable DETR of the authors' repository")
        return tensors[name].shape[axis]

    def count(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return len({match[1] for name in tensors if (match := pattern.match(name))})

    body, decoder = "backbone.0.body", "transformer.decoder.layers.0"
    depths = [count(f"{body}.layer{i}") for i in range(1, 5)]
    kind, last = ("bottleneck", 3) if f"{body}.layer1.0.conv3.weight" in tensors else ("basic", 2)
    widths = [size(f"{body}.layer{i}.0.conv{last}.weight") for i in range(1, 5)]
    levels, heads = size("transformer.level_embed"), arguments.get("nheads", 8)
    if not isinstance(heads, int) or heads < 1:
        raise ConfigError(f"nheads: expected a number of heads, got {heads!r}")
    given = sum(size(f"input_proj.{i}.0.weight", -1) == 1 for i in range(levels))
    two_stage = "transformer.pos_trans.weight" in tensors
    return published(
        size("class_embed.0.weight"),
        two_stage=two_stage,
        refine=count("transformer.decoder.bbox_embed") > 0,
        backbone=RESNET50
        | {
            "embedding_size": size(f"{body}.conv1.weight"),
            "hidden_sizes": widths,
            "depths": depths,
            "layer_type": kind,
        },
        strides=tuple(2 ** (6 - given + i) for i in range(levels)),
        transformer={
            "width": size("transformer.level_embed", 1),
            "num_heads": heads,
            "num_points": size(f"{decoder}.cross_attn.attention_weights.bias") // (heads * levels),
            "feedforward_dim": size(f"{decoder}.linear1.bias"),
            "encoder_layers": count("transformer.encoder.layers"),
            "decoder_layers": count("transformer.decoder.layers"),
            "num_queries": arguments.get("num_queries", 300) if two_stage else size("query_embed.weight"),
            "dropout": arguments.get("dropout", 0.1),
        },
    )
