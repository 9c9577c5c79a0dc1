import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import Patches, detector

from deform_attn.detr.checkpoints.checkpoint import load_model
from deform_attn.detr.checkpoints.training_state import load_training, without_nan
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TrainConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    OccupiedError,
    TrainingStopped,
)
from deform_attn.detr.model.deformable_detr import DeformableDetr, build_model
from deform_attn.detr.model.heads import Prediction
from deform_attn.detr.training import engine
from deform_attn.detr.training.engine import Progress, Step, fit, train_one_epoch
from deform_attn.detr.training.learner import Learner
from deform_attn.detr.training.matcher import Matcher, Targets
from deform_attn.detr.training.optimizer import build_optimizer, learning_rate
from deform_attn.detr.training.processes import start_processes
from deform_attn.detr.training.validation import evaluate_model


class Small(Patches):
    """Pictures of 32 x 32 pixels without an object."""

    def draw(self, index: int) -> Sample:
        return Sample(torch.rand(3, 32, 32), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), index, (32, 32))


@contextmanager
def learning(model: DeformableDetr, config: TrainConfig) -> Iterator[Learner]:
    with start_processes(model, config.precision) as processes:
        yield Learner(model, config, processes)


@pytest.mark.parametrize("two_stage", [True, False])
def test_a_tiny_model_learns_two_pictures_by_heart(two_stage: bool) -> None:
    data, learner = Patches(2), detector(two_stage=two_stage)
    config = TrainConfig(epochs=60, batch_size=2, lr=5e-3, warmup_steps=5)
    with learning(learner.model, config) as pupil:
        losses = [train_one_epoch(pupil, data, epoch)["loss"] for epoch in range(config.epochs)]
    assert losses[-1] < losses[0] / 5
    assert evaluate_model(learner, data)["AP50"] > 0.95


def without_seconds(history: Sequence[dict[str, float]]) -> list[dict[str, float | None]]:
    return without_nan([{name: value for name, value in record.items() if name != "seconds"} for record in history])


def test_a_resumed_training_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    data, config = Patches(6), TrainConfig(epochs=3, batch_size=2, warmup_steps=2)
    whole = detector(dropout=0.2)
    expected = fit(whole, data, config, tmp_path / "whole", validation=data)

    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(TrainingStopped, match="epoch 1 of 3 is kept; continue with resume=True") as caught:
        fit(detector(dropout=0.2), data, config, tmp_path / "stopped", validation=data, on_step=stop)
    assert isinstance(caught.value, KeyboardInterrupt)  # whoever catches that gets this
    assert (caught.value.path, caught.value.kept, caught.value.epochs) == (tmp_path / "stopped", 1, 3)
    torch.manual_seed(1)  # nothing may depend on it
    resumed, steps = detector(dropout=0.2), []
    torch.rand(5)
    actual = fit(
        resumed, data, config, tmp_path / "stopped", validation=data, resume=True,
        on_step=lambda progress: steps.append((progress.epoch, progress.step)),
    )  # fmt: skip
    assert steps == [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)]
    assert without_seconds(actual) == without_seconds(expected)
    for model in (resumed.model, load_model(tmp_path / "stopped").model):
        state = model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in whole.model.state_dict().items())


def test_a_finished_training_resumes_to_its_history_without_a_step(tmp_path: Path) -> None:
    data, config = Patches(2), TrainConfig(epochs=1, batch_size=2)
    history = fit(detector(), data, config, tmp_path / "run", resume=True)
    data.epochs.clear()
    assert fit(detector(), data, config, tmp_path / "run", resume=True) == history
    assert data.epochs == []


def test_resuming_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    data, config = Patches(2), TrainConfig(epochs=1, batch_size=2)
    fit(detector(), data, config, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"began with training setting lr 0\.001 \(now 0\.01\); resume it"):
        fit(detector(), data, replace(config, lr=0.01), tmp_path / "run", resume=True)
    with pytest.raises(
        CheckpointError, match=r"began with model setting transformer\.two_stage True \(now False\); resume it"
    ):
        fit(detector(two_stage=False), data, config, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match=r"began with images 2 \(now 3\); resume it"):
        fit(detector(), Patches(3), config, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match=r"began with max_size None \(now 80\); resume it"):
        fit(replace(detector(), max_size=80), data, config, tmp_path / "run", resume=True)
    data.categories = (Category(1, "bright"), Category(2, "dim"))
    with pytest.raises(
        CheckpointError, match=r"began with category \d 'dark' \(id \d\) \(now 'dim' \(id \d\)\); resume it"
    ):
        fit(replace(detector(), categories=data.categories), data, config, tmp_path / "run", resume=True)


def test_several_settings_that_differ_are_named_and_no_other(tmp_path: Path) -> None:
    data, config = Patches(2), TrainConfig(epochs=1, batch_size=2)
    fit(detector(), data, config, tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        fit(detector(), Patches(3), replace(config, lr=0.01, workers=1), tmp_path / "run", resume=True)
    different = "training setting lr 0.001 (now 0.01), images 2 (now 3); resume it with these"
    assert f"this training began with {different}" in str(caught.value)


def test_an_earlier_training_is_never_replaced_unasked(tmp_path: Path) -> None:
    data, config = Patches(2), TrainConfig(epochs=1, batch_size=2)
    fit(detector(), data, config, tmp_path / "run")
    before = (tmp_path / "run" / "training.safetensors").read_bytes()
    data.epochs.clear()
    with pytest.raises(OccupiedError, match=r"run: holds a training; .*resume=True.*overwrite=True") as caught:
        fit(detector(), data, config, tmp_path / "run")
    assert caught.value.path == tmp_path / "run"
    assert "--" not in str(caught.value)
    with pytest.raises(ConfigError, match="exclude each other"):
        fit(detector(), data, config, tmp_path / "run", resume=True, overwrite=True)
    assert data.epochs == []
    assert (tmp_path / "run" / "training.safetensors").read_bytes() == before
    fit(detector(), data, replace(config, lr=0.01), tmp_path / "run", overwrite=True)
    assert load_training(tmp_path / "run").config.lr == 0.01


def test_an_epoch_is_kept_when_its_evaluation_is_stopped_and_evaluated_on_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config = Patches(2), TrainConfig(epochs=1, batch_size=2)
    expected = fit(detector(), data, config, tmp_path / "whole", validation=data)

    def stop(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(engine, "evaluate_model", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(detector(), data, config, tmp_path / "run", validation=data)
    assert len(load_training(tmp_path / "run").history) == 1
    data.epochs.clear()
    actual = fit(detector(), data, config, tmp_path / "run", validation=data, resume=True)
    assert data.epochs == []
    assert without_seconds(actual) == without_seconds(expected)
    assert without_seconds(load_training(tmp_path / "run").history) == without_seconds(expected)


def test_a_training_that_is_stopped_before_it_replaced_an_earlier_one_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config = Patches(2), TrainConfig(epochs=2, batch_size=2)
    fit(detector(), data, config, tmp_path / "run")
    before = (tmp_path / "run" / "training.safetensors").read_bytes()

    def stop(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.checkpoints, "save", stop)
    with pytest.raises(TrainingStopped, match="no epoch is kept") as caught:
        fit(detector(), data, config, tmp_path / "run", overwrite=True)
    assert caught.value.kept == 0
    (tmp_path / "run" / "training.safetensors").unlink()  # of a detector without a training
    with pytest.raises(TrainingStopped, match="no epoch is kept"):
        fit(detector(), data, config, tmp_path / "run", overwrite=True)
    (tmp_path / "run" / "training.safetensors").write_bytes(before)
    with pytest.raises(TrainingStopped, match="epoch 2 of 2 is kept"):
        fit(detector(), data, config, tmp_path / "run", validation=data, resume=True)


def test_a_place_that_cannot_be_written_to_is_refused_before_the_first_step(tmp_path: Path) -> None:
    data, config = Patches(2), TrainConfig(epochs=1, batch_size=2)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        fit(detector(), data, config, tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match="file: is a file; choose a folder"):
        fit(detector(), data, config, tmp_path / "file")
    assert data.epochs == []


def test_a_file_put_into_the_checkpoint_meanwhile_survives_the_training(tmp_path: Path) -> None:
    def put(progress: Progress) -> None:
        if progress.epoch == 2:
            (tmp_path / "run" / "notes.txt").write_text("a good run")

    fit(detector(), Patches(2), TrainConfig(epochs=3, batch_size=2), tmp_path / "run", on_step=put)
    assert len(load_training(tmp_path / "run").history) == 3
    assert (tmp_path / "run" / "notes.txt").read_text() == "a good run"


@pytest.mark.parametrize(
    ("categories", "difference"),
    [
        (
            (Category(1, "bright"), Category(2, "dim")),
            r"only in the \w+ data: 'dim' \(id 2\); only in the detector: 'dark' \(id 2\)",
        ),
        ((Category(2, "dark"), Category(1, "bright")), "they are in another order"),
        ((*Patches.categories, Category(3, "grey")), r"only in the \w+ data: 'grey' \(id 3\)"),
        (Patches.categories[:1], r"only in the detector: 'dark' \(id 2\)"),
    ],
)
def test_data_of_other_categories_are_refused_before_the_first_step(
    tmp_path: Path, categories: tuple[Category, ...], difference: str
) -> None:
    data, other, config = Patches(2), Patches(2), TrainConfig(epochs=1, batch_size=2)
    other.categories = categories
    said = f"^the categories of the {{}} data and the detector differ; {difference}; give both the same categories, "
    with pytest.raises(DataError, match=said.format("evaluation")):
        evaluate_model(detector(), other)
    with pytest.raises(DataError, match=said.format("training")):
        fit(detector(), other, config, tmp_path / "run")
    with pytest.raises(DataError, match=said.format("validation")):
        fit(detector(), data, config, tmp_path / "run", validation=other)
    with pytest.raises(DataError, match="training data: no image to train on"):
        fit(detector(), Patches(0), config, tmp_path / "run")
    assert data.epochs == []
    assert not (tmp_path / "run").exists()


def test_training_leaves_the_global_random_state_alone() -> None:
    data, model, config = Patches(2), detector(dropout=0.1).model, TrainConfig(epochs=1, batch_size=2)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with learning(model, config) as learner:
        train_one_epoch(learner, data, 0)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_dropped_differs_from_step_to_step_and_follows_from_the_seed() -> None:
    def dropped(seed: int) -> list[list[bool]]:
        model, masks = detector(dropout=0.5).model, []
        first = next(module for module in model.modules() if isinstance(module, torch.nn.Dropout))
        first.register_forward_hook(lambda _module, _inputs, output: masks.append((output == 0).flatten().tolist()))
        with learning(model, TrainConfig(epochs=2, batch_size=2, seed=seed)) as learner:
            for epoch in range(2):
                train_one_epoch(learner, Patches(4), epoch)
        return masks

    masks = dropped(0)
    assert len(masks) == len({tuple(mask) for mask in masks}) == 4
    assert dropped(0) == masks
    assert all(mask not in masks for mask in dropped(1))


def test_training_and_evaluation_run_in_the_callers_thread() -> None:
    # Other threads would not see its use_backend, autocast and record, and would draw random numbers in any order.
    class Watched(Patches):
        def __getitem__(self, index: int) -> Sample:
            threads.add(threading.get_ident())
            return super().__getitem__(index)

    threads: set[int] = set()
    first, config = detector(), TrainConfig(epochs=1, batch_size=2)
    first.model.register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
    with learning(first.model, config) as learner:
        train_one_epoch(learner, Watched(4), 0)
    evaluate_model(first, Watched(2))
    assert threads == {threading.get_ident()}


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(lr=0.1, warmup_steps=10)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1, rel=0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_a_short_training_spends_half_of_its_steps_on_the_warm_up() -> None:
    rates = [learning_rate(step, 20, TrainConfig(lr=0.1, warmup_steps=100)) for step in range(20)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) > 0.055  # of 0.1, half of which the cosine has taken in the middle
    assert learning_rate(0, 1, TrainConfig(lr=0.1, warmup_steps=100)) == pytest.approx(0.1)


def test_batch_normalisation_of_single_values_is_refused_in_one_line(tmp_path: Path) -> None:
    model = build_model(ModelConfig(2, strides=(8, 16, 32), backbone=BackboneConfig(channels=(8, 8, 8, 8, 8))))
    message = r"a batch of 1 as small as 32 x 32 pixels; choose larger images"
    with learning(model, TrainConfig(batch_size=1)) as pupil, pytest.raises(ConfigError, match=message):
        train_one_epoch(pupil, Small(1), 0)
    with learning(model, TrainConfig(batch_size=2)) as pupil:
        assert train_one_epoch(pupil, Small(2), 0)["loss"] > 0


def test_each_step_has_the_rate_of_the_schedule_times_the_factor_of_its_group() -> None:
    config = TrainConfig(epochs=2, batch_size=2, warmup_steps=3, offsets_lr_factor=0.1)
    rates: list[list[tuple[float, float]]] = []
    with learning(detector().model, config) as learner:

        def note(step: Step) -> None:
            rates.append([(group["lr"], group["lr_factor"]) for group in learner.optimizer.param_groups])
            assert step.rate == learning_rate(len(rates) - 1, 6, config)

        for epoch in range(2):
            record = train_one_epoch(learner, Patches(6), epoch, after_step=note)
    expected = [learning_rate(step, 6, config) for step in range(6)]
    assert [{factor: rate for rate, factor in groups} for groups in rates] == [
        {1.0: rate, 0.1: rate * 0.1} for rate in expected
    ]
    assert record["lr"] == expected[-1]


def test_gradients_are_clipped_all_together() -> None:
    for limit in (1e-3, 1e6):
        with learning(detector().model, TrainConfig(epochs=1, batch_size=2, clip_norm=limit)) as learner:
            train_one_epoch(learner, Patches(2), 0)
        norms = torch.stack([parameter.grad.norm() for parameter in learner.model.parameters()])
        assert norms.norm() == pytest.approx(1e-3, rel=1e-3) if limit < 1 else norms.norm() > 1


def test_bfloat16_trains_float32_weights_against_float32_losses(tmp_path: Path) -> None:
    config = TrainConfig(epochs=30, batch_size=2, lr=3e-3, warmup_steps=5, precision="bfloat16")
    learner, data, seen = detector(), Patches(2), set()
    model = learner.model

    def note(kind: str, dtype: torch.dtype) -> None:
        seen.add((kind, dtype))

    model.transformer.register_forward_hook(
        lambda _module, _inputs, output: note("logits", output[0][-1].logits.dtype) if model.training else None
    )
    with pytest.MonkeyPatch.context() as patches:
        cost = Matcher.cost

        def watched(self: Matcher, prediction: Prediction, targets: Targets) -> torch.Tensor:
            note("matching", prediction.logits.dtype)
            note("matching", prediction.boxes.dtype)
            return cost(self, prediction, targets)

        patches.setattr(Matcher, "cost", watched)
        history = fit(learner, data, config, tmp_path / "run")
    assert seen == {("logits", torch.bfloat16), ("matching", torch.float32)}
    losses = [record["loss"] for record in history]
    assert losses[-1] < losses[0] / 2
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    with torch.no_grad():  # afterwards the model is as it was: it says nothing of bfloat16
        assert model.eval()(data[0].image[None]).logits.dtype == torch.float32


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    class Empty(Patches):  # nothing to match, where the costs would tell
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return replace(sample, boxes=sample.boxes[:0], labels=sample.labels[:0])

    learner = detector()
    torch.nn.init.constant_(learner.model.level_embedding, math.nan)
    with pytest.raises(DivergenceError, match="not finite"):
        fit(learner, Empty(2), TrainConfig(epochs=1), tmp_path / "run")


def test_offsets_and_backbone_have_their_own_learning_rates() -> None:
    model = detector().model
    optimizer, names = build_optimizer(model, TrainConfig(offsets_lr_factor=0.1, backbone_lr_factor=0.5))
    factors = [group["lr_factor"] for group in optimizer.param_groups for _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    for name, factor in zip(names, factors, strict=True):
        expected = 0.1 if "sampling_offsets" in name else 0.5 if name.startswith("backbone.") else 1.0
        assert factor == expected, name
