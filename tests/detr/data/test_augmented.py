"""Augmented data: which samples change, when, and that nothing but seed, epoch and index decides how."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from deform_attn.detr.config.detector import AugmentConfig, BackboneConfig, ModelConfig, TrainConfig, TransformerConfig
from deform_attn.detr.data.augmented import Augmented
from deform_attn.detr.data.base import coco_from_samples
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.errors import CheckpointError, ConfigError, TrainingStopped
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.engine import fit

ALL = AugmentConfig(
    crop=(0.5, 0.9), keep=0.5, resize=(0.5, 1.5), max_size=70, horizontal_flip=True, vertical_flip=True,
    quarter_turns=True, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05,
)  # fmt: skip


def scenes(length=6, split="val"):
    """Return scenes that are the same in every epoch, unless they are of the training split."""
    return DigitScenes(split, length, size=64)


def augmented(config=ALL, seed=3, epoch=0):
    data = Augmented(scenes(), config, seed)
    data.set_epoch(epoch)
    return data


def same(first, second):
    return (
        torch.equal(first.image, second.image)
        and torch.equal(first.boxes, second.boxes)
        and torch.equal(first.labels, second.labels)
    )


def test_by_default_nothing_changes():
    plain, data = scenes(), Augmented(scenes(), AugmentConfig(), 0)
    assert len(data) == len(plain)
    assert data.categories == plain.categories
    assert all(same(data[i], plain[i]) for i in range(6))
    assert data.ground_truth() == plain.ground_truth()


@pytest.mark.parametrize(
    "setting",
    [
        {"crop": (0.5, 0.5)},
        {"resize": (0.5, 0.5)},
        {"max_size": 40},
        {"horizontal_flip": True},
        {"vertical_flip": True},
        {"quarter_turns": True},
        {"brightness": 0.5},
        {"contrast": 0.5},
        {"saturation": 0.5},
        {"hue": 0.2},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_each_setting_changes_samples(setting):
    plain, data = scenes(), augmented(AugmentConfig(**setting))
    assert not all(same(data[i], plain[i]) for i in range(6))


def test_chance_follows_from_seed_epoch_and_index_alone():
    first, second = augmented(), augmented()
    expected = [first[i] for i in range(6)]
    torch.rand(3)  # the global state is another
    assert all(same(second[i], expected[i]) for i in reversed(range(6)))
    assert same(second[2], expected[2])  # again
    state = torch.get_rng_state()
    second[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_epoch_or_index_is_another_chance():
    data = Augmented(Repeated(scenes()[0]), AugmentConfig(crop=(0.5, 0.5)), 0)
    first = [data[i] for i in range(40)]
    # 33 x 33 places, less those without a digit: that some agree by chance is nothing strange, all would be.
    assert sum(not same(first[0], other) for other in first[1:]) > 30
    data.set_epoch(1)
    assert sum(not same(data[i], first[i]) for i in range(40)) > 30
    assert sum(not same(data[i], first[i + 1]) for i in range(39)) > 30  # nor that of a neighbour
    assert sum(not same(Augmented(data.data, data.config, 1)[i], first[i]) for i in range(40)) > 30


class Repeated:
    """One sample, many times."""

    def __init__(self, sample):
        self.sample = sample
        self.categories = scenes().categories

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.sample

    def set_epoch(self, epoch):
        """Do nothing."""


def test_the_epoch_reaches_the_data_within():
    data = Augmented(scenes(split="train"), AugmentConfig(), 0)
    before = data[0]
    data.set_epoch(1)
    assert not same(data[0], before)


def first_of(batch):
    return batch[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # where there is one core
@pytest.mark.parametrize("workers", [1, 2])
def test_samples_are_the_same_in_worker_processes(workers):
    data = augmented(epoch=2)
    loader = DataLoader(data, num_workers=workers, collate_fn=first_of)
    samples = list(loader)
    assert len(samples) == 6
    assert all(same(sample, data[i]) for i, sample in enumerate(samples))


def test_the_ground_truth_is_that_of_the_changed_samples():
    data = augmented()
    assert data.ground_truth() == coco_from_samples(list(data), data.categories)
    assert data.ground_truth() != scenes().ground_truth()


def test_iteration_ends_with_the_last_sample():
    assert [sample.image_id for sample in augmented()] == list(range(6))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": (0.5, 1.5)}, r"crop: must be two numbers .*, the smaller first, at most 1, got \(0\.5, 1\.5\)"),
        ({"crop": (0.0, 0.5)}, "crop: must be two numbers above zero"),
        ({"crop": (0.9, 0.5)}, "crop: must be two numbers above zero, the smaller first"),
        ({"crop": (0.5,)}, "crop: must be two numbers"),
        ({"resize": (1.0, float("inf"))}, r"resize\[1\]: expected a finite number"),
        ({"resize": (0.5, float("nan"))}, r"resize\[1\]: expected a finite number"),
        ({"resize": 2.0}, r"AugmentConfig\.resize: expected a list of 2 numbers, got 2\.0"),
        ({"keep": 0}, r"keep: must be above 0 and at most 1, got 0"),
        ({"keep": 1.1}, "keep: must be above 0"),
        ({"max_size": 0}, "max_size: must be above zero, got 0"),
        ({"brightness": 1.5}, r"brightness: must be from 0 to 1, got 1\.5"),
        ({"saturation": -0.1}, r"saturation: must be from 0 to 1"),
        ({"hue": 0.6}, r"hue: must be from 0 to 0\.5, got 0\.6"),
        ({"hue": float("nan")}, "hue: expected a finite number"),
        ({"flip": True}, "unknown field 'flip'"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict({"augment": values})


def test_settings_survive_a_dictionary():
    config = TrainConfig(augment=ALL)
    assert TrainConfig.from_dict(config.to_dict()) == config


def detector():
    torch.manual_seed(0)
    transformer = TransformerConfig(
        width=32, num_heads=2, feedforward_dim=32, encoder_layers=1, decoder_layers=1, num_queries=8
    )
    config = ModelConfig(10, backbone=BackboneConfig(channels=(8, 16, 24, 32)), transformer=transformer)
    return Detector(build_model(config), scenes().categories)


def without_seconds(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def test_fit_trains_on_changed_samples_and_resumes_with_the_same(tmp_path):
    config = TrainConfig(epochs=2, batch_size=3, warmup_steps=1, augment=ALL)
    expected = fit(detector(), scenes(), config, tmp_path / "whole")
    plain = fit(detector(), scenes(), replace(config, augment=AugmentConfig()), tmp_path / "plain")
    assert plain[0]["loss"] != expected[0]["loss"]

    def stop(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(TrainingStopped):
        fit(detector(), scenes(), config, tmp_path / "stopped", on_step=stop)
    with pytest.raises(CheckpointError, match="began with training setting augment"):
        fit(detector(), scenes(), replace(config, augment=AugmentConfig()), tmp_path / "stopped", resume=True)
    actual = fit(detector(), scenes(), config, tmp_path / "stopped", resume=True)
    assert without_seconds(actual) == without_seconds(expected)
