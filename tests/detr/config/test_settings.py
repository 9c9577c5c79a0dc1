"""The settings of a run: layers, the TOML file, and what is said about wrong ones."""

import math
import tomllib
from datetime import date

import pytest

from deform_attn.detr.config.detector import BackboneConfig, TrainConfig
from deform_attn.detr.config.run import DEFAULTS, DataConfig, Settings, merged, read_settings
from deform_attn.detr.errors import ConfigError

WRONG = {
    "train.epoch = 3": "train: unknown field 'epoch'; the fields are epochs, ",
    "train.epochs = 'many'": "train.epochs: expected a whole number, got 'many'",
    "train.epochs = 0": "train: epochs: must be above zero",
    "train.loss.gama = 1.0": "train.loss: unknown field 'gama'",
    "model.transformer.width = 1.5": "model.transformer.width: expected a whole number, got 1.5",
    "model.backbone.norm = 'layer'": "model.backbone.norm: expected one of 'batch', 'group', 'frozen', got 'layer'",
    "model.num_classes = 3": "model: num_classes comes from the data; leave it out",
    "model = 3": "model: expected a table, got 3",
    "data.max_size = 'large'": "data.max_size: expected a whole number, got 'large'",
    "model.backbone.source = 1": "model.backbone.source: expected a table or a text in quotes, got 1",
    "train.augment.crop = 0.5": "train.augment.crop: expected a list of 2 numbers, got 0.5",
    "train.augment.vertical_flip = 1": "train.augment.vertical_flip: expected true or false, got 1",
    "data.max_size = 0": "data: max_size: must be above zero",
    "optimiser.lr = 1.0": "unknown field 'optimiser'; the fields are start, model, train, data",
    "start = 'run'\nmodel.strides = [8]": "model: the starting weights run have a model of their own",
    "train.epochs = ": "not valid TOML (",
    "train.clip_norm = inf": "train.clip_norm: expected a finite number, got inf",
    "model.backbone.source = 'resnet'": "model.backbone: source: is for name='transformers'",
    "a = " + 5000 * "[": "not valid TOML (",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_in_a_file_is_one_line_with_file_and_key(tmp_path, text):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(file)
    assert str(caught.value).startswith(f"{file}: {WRONG[text]}")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_setting(tmp_path):
    (tmp_path / "run.toml").write_text("train.epochs = 3", encoding="utf-8-sig")
    assert read_settings(tmp_path / "run.toml") == {"train": {"epochs": 3}}


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"run.toml: cannot be read \(No such file"):
        read_settings(tmp_path / "run.toml")


def test_later_layers_win_key_by_key_over_earlier_ones_and_those_over_the_defaults():
    first = {"train": {"lr": 0.5, "seed": 4}, "data": {"dir": "trees"}}
    settings = Settings.from_layers(first, {"train": {"seed": 5, "loss": {"gamma": 1}}})
    expected = TrainConfig(**DEFAULTS["train"], lr=0.5, seed=5)
    assert (settings.train.lr, settings.train.seed, settings.train.epochs) == (0.5, 5, expected.epochs)
    assert settings.train.loss.gamma == 1.0
    assert settings.data == DataConfig("trees")
    assert settings.model_for(7).num_classes == 7
    assert settings.model.transformer.num_queries == DEFAULTS["model"]["transformer"]["num_queries"]
    assert first["train"] == {"lr": 0.5, "seed": 4}


def test_merging_replaces_what_is_no_table_and_lists_as_a_whole():
    assert merged({"a": {"b": [1, 2], "c": 3}}, {"a": {"b": [4]}}) == {"a": {"b": [4], "c": 3}}
    assert merged({"a": "text"}, {"a": {"b": 1}}) == {"a": {"b": 1}}


LAYERS = [
    {},
    {"start": 'a "quoted" \\ name', "train": {"lr": 1e-5}, "data": {"dir": "Bäume\t2", "max_size": 640}},
    {"model": {"strides": [8, 16, 32], "backbone": {"channels": [8, 16, 24], "norm": "group"}}},
    {"model": {"backbone": {"name": "transformers", "source": {"model_type": "x", "a b": [{"c": True}], "d": {}}}}},
    {"train": {"weight_decay": 0, "clip_norm": 1e30}},
    {"data": {"dir": "a delete\x7f, a bell\a and a line\n"}},
    {"model": {"backbone": {"name": "transformers", "source": {"\x7f": math.inf, "day": date(2024, 5, 6)}}}},
]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_written_file_says_the_same(tmp_path, layer):
    settings = Settings.from_layers(layer)
    file = tmp_path / "run.toml"
    file.write_text(settings.to_toml(), encoding="utf-8")
    assert Settings.from_layers(read_settings(file)) == settings


def test_the_written_file_names_every_setting():
    tables = tomllib.loads(Settings.from_layers().to_toml())
    assert tables["train"].keys() == TrainConfig().to_dict().keys()
    assert tables["model"]["backbone"].keys() == BackboneConfig().to_dict().keys() - {"source"}  # which is None


def test_what_is_none_is_left_out_of_the_written_file_at_any_depth():
    source = {"depths": None, "stages": [{"width": 8, "stride": None}]}
    settings = Settings.from_layers({"model": {"backbone": {"name": "transformers", "source": source}}})
    written = tomllib.loads(settings.to_toml())
    assert written["model"]["backbone"]["source"] == {"stages": [{"width": 8}]}
