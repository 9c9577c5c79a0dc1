"""A detector on another device than the CPU: where nothing is left behind, a second device computes the same."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from patches import Patches, detector
from PIL import Image
from torch import Tensor

from deform_attn.detr.checkpoints.checkpoint import load_model
from deform_attn.detr.checkpoints.published import published
from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.errors import TrainingStopped
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.prediction.predict import PREDICTIONS, predict
from deform_attn.detr.training.batches import epoch_parts
from deform_attn.detr.training.engine import Progress, fit
from deform_attn.detr.training.learner import Learner
from deform_attn.detr.training.processes import start_processes
from second_device import Elsewhere, second_device

CONFIG = TrainConfig(epochs=1, batch_size=1, warmup_steps=2, save_every=1)
DATA = Patches(2)


def stop(progress: Progress) -> None:
    if progress.step == 1:
        raise KeyboardInterrupt


def train(path: Path, device: str | torch.device, **options: Any) -> Detector:
    learner = detector(norm="group")
    learner.model.double()  # because Adam makes whole steps of rounding errors where a gradient should be zero
    fit(learner, DATA, CONFIG, path, validation=DATA, device=device, **options)
    return learner


def begin(path: Path, device: str | torch.device) -> None:
    with pytest.raises(TrainingStopped):
        train(path, device, on_step=stop)


def tensors(model: torch.nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def test_a_training_resumes_on_another_device_than_it_began_as_on_its_own(tmp_path: Path) -> None:
    begin(tmp_path / "here", "cpu")
    shutil.copytree(tmp_path / "here", tmp_path / "from here")
    train(tmp_path / "here", "cpu", resume=True)
    with second_device() as device:
        trained = train(tmp_path / "from here", device, resume=True)
        assert all(isinstance(tensor, Elsewhere) for tensor in tensors(trained.model))
        begin(tmp_path / "from there", device)
    train(tmp_path / "from there", "cpu", resume=True)
    expected = load_model(tmp_path / "here").model.state_dict()
    for name in ("from here", "from there"):
        actual = load_model(tmp_path / name).model.state_dict()
        wrong = [key for key in expected if not torch.allclose(actual[key], expected[key], rtol=1e-9, atol=1e-9)]
        assert wrong == [], name


def kinds() -> dict[str, Detector]:
    """Return a detector for each part of which a model has one or another."""
    small = {"width": 32, "num_heads": 2, "feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2}
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    config: dict[str, Any] = {"backbone": resnet, "transformer": small | {"num_queries": 8, "dropout": 0.0}}
    return {
        "one stage": detector(two_stage=False),
        "dense": detector("dense", norm="group"),
        "published": Detector(build_model(published(2, **config)), DATA.categories),
        "published, one stage": Detector(build_model(published(2, two_stage=False, **config)), DATA.categories),
    }


def test_a_step_leaves_nothing_on_the_cpu_whatever_the_detector_is_made_of() -> None:
    def losses_on(device: torch.device, learners: dict[str, Detector]) -> dict[str, Tensor]:
        losses = {}
        for name, learner in learners.items():
            with start_processes(learner.model, "float32", device=device) as processes:
                pupil = Learner(learner.model, CONFIG, processes)
                losses[name] = pupil.step(epoch_parts(DATA, CONFIG, 0), 1e-3)
                assert {tensor.device for tensor in pupil.state().values()} == {device}
        return losses

    here, there = kinds(), kinds()
    expected = losses_on(torch.device("cpu"), here)
    with second_device() as device:
        actual = losses_on(device, there)
    assert [name for name in expected if not torch.allclose(actual[name], expected[name], rtol=1e-5)] == []


def test_predictions_are_the_same(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (80, 64), "gray").save(picture)
    learner = detector()
    expected = predict(learner, [picture], tmp_path / "here", threshold=0.0)
    with second_device() as device:
        learner.model.to(device)
        actual = predict(learner, [picture], tmp_path / "there", threshold=0.0)
        scores, boxes = (
            [[one[name] for one in result.coco["annotations"]] for result in (actual, expected)]
            for name in ("score", "bbox")
        )
        torch.testing.assert_close(*map(torch.tensor, scores))
        torch.testing.assert_close(*map(torch.tensor, boxes))
    assert expected.coco["annotations"]
    assert {file.name for file in actual.files} == {"picture.png", PREDICTIONS}


def test_what_is_left_on_the_cpu_is_found() -> None:
    with second_device() as device:
        there = torch.ones(3, device=device)
        assert torch.equal((there * torch.tensor(2.0)).cpu(), torch.full((3,), 2.0))  # a number may stay
        for forgotten in (
            lambda: there + torch.ones(3),
            lambda: torch.cat((torch.ones(3), there)),
            lambda: there[torch.tensor([0])],
            lambda: torch.nn.Linear(3, 1)(there),
            lambda: there.add_(torch.ones(3)),
        ):
            with pytest.raises(RuntimeError, match="tensors on two devices"):
                forgotten()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
