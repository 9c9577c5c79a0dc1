import json
import math
from dataclasses import replace
from typing import Any

import pytest

from deform_attn.detr.config.base import Config
from deform_attn.detr.config.detector import BackboneConfig, LossConfig, ModelConfig, TrainConfig, TransformerConfig
from deform_attn.detr.config.run import DataConfig


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(7),
        ModelConfig(
            3,
            strides=(4, 8, 32),
            backbone=BackboneConfig("transformers", source={"model_type": "resnet", "depths": [1, 2]}),
            transformer=TransformerConfig(attention="dense", two_stage=False, width=48, proposal_size=0.05),
        ),
        TrainConfig(epochs=3, lr=1, loss=LossConfig(box_weight=2.5)),
    ],
)
def test_a_config_survives_json(config: ModelConfig | TrainConfig) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "num_classes"),
        ({"num_classes": 2, "depth": 3}, "unknown field 'depth'; the fields are num_classes, strides"),
        ({"num_classes": "2"}, r"ModelConfig\.num_classes: expected a whole number, got '2'"),
        ({"num_classes": True}, "num_classes: expected a whole number, got True"),
        ({"num_classes": 0}, "num_classes: must be above zero"),
        ({"num_classes": 2, "strides": [8, "16"]}, r"strides\[1\]: expected a whole number, got '16'"),
        ({"num_classes": 2, "strides": [8, 12]}, "strides: must be powers of two, such as 8 or 16, got 12"),
        ({"num_classes": 2, "strides": [16, 8]}, "must ascend"),
        (
            {"num_classes": 2, "transformer": {"attention": "sparse"}},
            "attention: expected one of 'deformable', 'deformable_single_scale', 'dense', got 'sparse'",
        ),
        ({"num_classes": 2, "transformer": {"widht": 32}}, "TransformerConfig: unknown field 'widht'"),
        ({"num_classes": 2, "transformer": {"width": 40, "num_heads": 3}}, "40 is not a multiple of num_heads 3"),
        ({"num_classes": 2, "transformer": None}, "transformer: expected a table, got None"),
        ({"num_classes": 2, "backbone": {"name": "transformers"}}, "source"),
        ({"num_classes": 2, "backbone": {"norm": "group", "channels": [8, 12]}}, r"\(8, 12\) are not multiples of 8"),
        ({"num_classes": 2, "backbone": {"norm": "group", "name": "transformers", "source": "x"}}, "leave norm out"),
        ({"num_classes": 2, "backbone": {"source": "x"}}, "source: is for name='transformers'"),
        ({"num_classes": 2, "transformer": {"position_temperature": 0}}, "position_temperature: must be above zero"),
        ({"num_classes": 2, "transformer": {"proposal_size": math.nan}}, "expected a finite number, got nan"),
        ({"num_classes": 2, "norm_groups": 7}, "norm_groups: must divide the width, 64, got 7"),
        ({"num_classes": 2, "norm_groups": 0}, "norm_groups: must divide the width, 64, got 0"),
        ([("num_classes", 2)], "expected a table, got "),
    ],
)
def test_a_wrong_config_says_which_field_is_wrong(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(values)


def test_a_config_is_checked_however_it_is_made() -> None:
    with pytest.raises(ValueError, match="TrainConfig: lr: must be above zero"):
        TrainConfig(lr=-1)
    with pytest.raises(ValueError, match=r"TrainConfig\.epochs: expected a whole number, got 2\.5"):
        replace(TrainConfig(), epochs=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="LossConfig: gamma: must not be negative"):
        LossConfig(gamma=-1)
    with pytest.raises(ValueError, match=r"LossConfig: alpha: must be from 0 to 1, got 7\.0"):
        LossConfig(alpha=7)


def test_a_number_out_of_range_is_shown() -> None:
    wrong: list[tuple[type[Config], dict[str, Any], str]] = [
        (BackboneConfig, {"channels": (8, -3)}, "channels: must be at least one, all above zero, got (8, -3)"),
        (BackboneConfig, {"channels": ()}, "channels: must be at least one, all above zero, got ()"),
        (TransformerConfig, {"num_queries": -4}, "num_queries: must be above zero, got -4"),
        (TransformerConfig, {"encoder_layers": -2}, "encoder_layers: must not be negative, got -2"),
        (TransformerConfig, {"proposal_size": -0.5}, "proposal_size: must be above zero, got -0.5"),
        (TransformerConfig, {"dropout": 1.5}, "dropout: must be at least 0 and below 1, got 1.5"),
        (ModelConfig, {"num_classes": -7}, "num_classes: must be above zero, got -7"),
        (ModelConfig, {"num_classes": 2, "strides": (16, 8)}, "strides: must ascend, got (16, 8)"),
        (LossConfig, {"gamma": -1.25}, "gamma: must not be negative, got -1.25"),
        (TrainConfig, {"lr": -0.1}, "lr: must be above zero, got -0.1"),
        (TrainConfig, {"workers": -3}, "workers: must not be negative, got -3"),
        (DataConfig, {"max_size": -9}, "max_size: must be above zero, got -9"),
        (DataConfig, {"max_pixels": -9}, "max_pixels: must be above zero, got -9"),
    ]
    for config, values, message in wrong:
        with pytest.raises(ValueError, match="must") as caught:
            config(**values)
        assert str(caught.value) == f"{config.__name__}: {message}"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**400])
def test_a_number_that_no_checkpoint_could_hold_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"TrainConfig\.clip_norm: expected a finite number, got "):
        TrainConfig(clip_norm=value)


def test_kinds_with_one_level_see_the_single_stride() -> None:
    for attention, levels in (("deformable", (4, 8)), ("deformable_single_scale", (8,)), ("dense", (8,))):
        transformer = TransformerConfig.from_dict({"attention": attention})
        assert ModelConfig(2, strides=(4, 8), single_stride=8, transformer=transformer).levels == levels


@pytest.mark.parametrize("seed", [-1, 2**31, 10**30])
def test_a_seed_that_torch_would_not_take_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed: must be from 0 to 2147483647, got {seed}"):
        TrainConfig(seed=seed)
