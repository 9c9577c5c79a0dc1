import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deform_attn.detr.checkpoints.checkpoint import (
    check_target,
    exists,
    load_model,
    save,
)
from deform_attn.detr.checkpoints.training_state import TrainingState, load_trained, load_training
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TrainConfig, TransformerConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.errors import CheckpointError
from deform_attn.detr.files import read_metadata, read_tensors
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector


def detector(seed: int, width: int = 16) -> Detector:
    torch.manual_seed(seed)
    transformer = TransformerConfig(width=width, num_heads=2, feedforward_dim=24, encoder_layers=1, decoder_layers=1)
    config = ModelConfig(2, backbone=BackboneConfig(channels=(6, 8, 10, 12)), transformer=transformer)
    return Detector(build_model(config), (Category(3, "pine"), Category(8, "äpple")), max_size=320)


def same_weights(first: Detector, second: Detector) -> bool:
    states = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def training(epochs: int) -> TrainingState:
    history = [{"epoch": float(i + 1), "loss": 0.1 * i, "seconds": 2.5} for i in range(epochs)]
    return TrainingState(
        TrainConfig(epochs=10**9), history, {"a.step": torch.tensor(3.0), "a.exp_avg": torch.rand(2, 3)}, 7
    )


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    before, state = detector(0), training(2)
    save(tmp_path / "runs" / "checkpoint", before, state)
    after = load_model(tmp_path / "runs" / "checkpoint")
    assert same_weights(before, after)
    assert after.model.config == before.model.config
    assert (after.categories, after.max_size) == (before.categories, 320)
    assert not after.model.training
    loaded = load_training(tmp_path / "runs" / "checkpoint")
    assert (loaded.config, loaded.history, loaded.pictures) == (state.config, state.history, 7)
    assert loaded.optimizer.keys() == state.optimizer.keys()
    assert all(torch.equal(tensor, state.optimizer[name]) for name, tensor in loaded.optimizer.items())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["checkpoint"]


def test_metrics_that_are_not_defined_survive_as_nan(tmp_path: Path) -> None:
    state = TrainingState(TrainConfig(), [{"epoch": 1, "loss": 1.5, "seconds": 2, "AP>96": math.nan}], {}, 7)
    save(tmp_path / "run", detector(0), state)
    assert "NaN" not in str(read_metadata(tmp_path / "run" / "training.safetensors"))
    history = load_training(tmp_path / "run").history
    assert history[0]["loss"] == 1.5
    assert math.isnan(history[0]["AP>96"])


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


WITH_TRAINING = ["config.json", "model.safetensors", "training.safetensors"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each process that is killed is a fork")
def test_a_process_killed_again_and_again_while_it_saves_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    # For each line that it reads, it forks a process that saves, and says its number; this one has imported all once.
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_detr_checkpoint import detector, save, training
first = detector(0)
for _ in sys.stdin:
    child = os.fork()
    if child:
        print(child, os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
        continue
    print(os.getpid(), flush=True)
    for epoch in range(1, 10**9):
        for parameter in first.model.parameters():
            parameter.data.fill_(epoch)
        save({str(tmp_path / "run")!r}, first, training(epoch))
        if epoch == 1:
            print("saved", flush=True)
"""
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as saver:
        assert saver.stdin is not None
        assert saver.stdout is not None
        try:
            for i in range(3):
                print(flush=True, file=saver.stdin)
                child = int(saver.stdout.readline())
                assert saver.stdout.readline() == "saved\n"
                time.sleep(0.05 + 0.013 * i)
                os.kill(child, signal.SIGKILL)
                assert saver.stdout.readline() == f"{child} {signal.SIGKILL.value}\n"
                epoch = len(load_training(tmp_path / "run").history)
                assert all((tensor == epoch).all() for tensor in load_trained(tmp_path / "run").model.parameters())
                weights = torch.cat([tensor.flatten() for tensor in load_model(tmp_path / "run").model.parameters()])
                assert weights.min() == weights.max()
                assert weights.max() in (epoch - 1, epoch)
        finally:
            os.killpg(saver.pid, signal.SIGKILL)
    save(tmp_path / "run", detector(1), training(1))
    assert contents(tmp_path / "run") == WITH_TRAINING


def test_what_lies_beside_or_in_a_checkpoint_survives(tmp_path: Path) -> None:
    save(tmp_path / "run", detector(0))
    for folder in ("run", "run.old", "run.new"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "thesis.txt").write_text("the only copy")
    check_target(tmp_path / "run")
    save(tmp_path / "run", detector(1))
    assert same_weights(load_model(tmp_path / "run"), detector(1))
    for folder in ("run", "run.old", "run.new"):
        assert (tmp_path / folder / "thesis.txt").read_text() == "the only copy"


def test_files_of_other_programs_are_refused_as_a_target(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="file: is a file; choose a folder"):
        check_target(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_text("weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not the file of a checkpoint"):
        check_target(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"config\.json: not the file of a detector"):
        check_target(tmp_path / "other")
    with pytest.raises(OSError, match="file"):
        check_target(tmp_path / "file" / "run")


def test_the_files_have_the_permissions_that_the_umask_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save(tmp_path / "run", detector(0), training(1))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "run").iterdir()} == {0o644}


def test_a_full_disk_is_an_os_error_and_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "run", detector(0), training(1))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / "run", detector(1), training(2))
    assert same_weights(load_model(tmp_path / "run"), detector(0))
    assert contents(tmp_path / "run") == WITH_TRAINING


def test_a_checkpoint_in_the_current_directory_is_replaced_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        check_target(".")
        save(".", detector(seed), training(1))
        assert exists(".")
        assert same_weights(load_model("."), detector(seed))
    assert Path.cwd() == tmp_path


def test_a_checkpoint_behind_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    save(tmp_path / "run", detector(0))
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    save(tmp_path / "link", detector(1))
    assert same_weights(load_model(tmp_path / "run"), detector(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(text)


def change(name: str, key: str, value: Any) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        values = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(values | {key: value}))

    return apply


def change_header(key: str, value: Any, table: str = "training") -> Callable[[Path], object]:
    """Change the header of the training's file: `key` in `table`, or at its top."""

    def apply(path: Path) -> None:
        file = path / "training.safetensors"
        header, tensors = json.loads(read_metadata(file)["deform_attn"]), read_tensors(file)
        (header[table] if table else header)[key] = value
        save_file(tensors, file, metadata={"deform_attn": json.dumps(header)})

    return apply


def cut(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"config\.json: No such file or directory; pass the directory of a checkpoint"),
        (write("config.json", "{"), r"config\.json: damaged"),
        (write("config.json", 100_000 * "["), r"config\.json: damaged"),
        (write("config.json", "[]"), r"config\.json: damaged \(expected an object, found list\)"),
        (change("config.json", "format", 99), "expected format 1, got 99; update deform-attn"),
        (change("config.json", "model", {"num_classes": 2, "depth": 1}), "unknown field 'depth'"),
        (change("config.json", "categories", [{"id": 3}]), "not the configuration of a detector"),
        (change("config.json", "categories", [{"id": 3, "name": "pine"}]), "1 categories for 2 classes"),
        (change("config.json", "max_size", "big"), "not the configuration of a detector, .*big"),
        (change("config.json", "max_size", 0), "max_size: expected a number of pixels, at least 1"),
        (change("config.json", "max_size", 1.5), "max_size: expected a number of pixels, at least 1"),
        (change("config.json", "categories", [{"id": math.inf, "name": "pine"}]), "not the configuration of a "),
        (change("config.json", "model", {"num_classes": 10**15}), "2 categories for 1000000000000000 classes"),
        (change("config.json", "model", {"num_classes": 2, "transformer": {"width": 8 * 10**12}}), "not the conf"),
        (change("config.json", "model", {"num_classes": 2}), r"model\.safetensors: (lacks|has|tensor)"),
        (write("model.safetensors", "no tensors"), r"model\.safetensors: damaged"),
        (cut("model.safetensors"), r"model\.safetensors: damaged"),
        (lambda path: (path / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
        (change_header("training", {}, ""), r"training\.safetensors: not the state of a training"),
        (
            change_header("format", None, ""),
            r"training\.safetensors: .*format None.* reads format 2; resume with that version",
        ),
        (
            lambda path: save_file({}, path / "training.safetensors", metadata={"deform_attn": "{"}),
            r"training\.safetensors: not the state of a training",
        ),
        (lambda path: save_file({}, path / "training.safetensors"), r"training\.safetensors: not the state of"),
        (change_header("pictures", None), r"training\.safetensors: not the state of a training"),
        (change_header("pictures", math.inf), r"training\.safetensors: not the state of a training"),
        (change_header("history", 3), r"training\.safetensors: not the state of a training"),
        (change_header("history", [3]), r"training\.safetensors: not the state of a training"),
        (change_header("history", [{}]), r"training\.safetensors: .*no record of epoch 1"),
        (change_header("history", [{"epoch": 1, "loss": 2.0}]), r"training\.safetensors: .*no record of epoch 1"),
        (change_header("history", [{"epoch": 2, "loss": 2.0, "seconds": 1}]), r"training\.safetensors: .*epoch 1"),
        (change_header("history", [{"epoch": 1, "loss": "2", "seconds": 1}]), r"training\.safetensors: .*epoch 1"),
        (cut("training.safetensors"), r"training\.safetensors: damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_file_and_the_reason(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    save(tmp_path / "checkpoint", detector(0), training(1))
    damage(tmp_path / "checkpoint")
    load = load_training if "training" in message else load_model
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path / "checkpoint")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_of_another_size_are_refused_by_name(tmp_path: Path) -> None:
    for name, width in (("narrow", 16), ("wide", 32)):
        save(tmp_path / name, detector(0, width))
    shutil.copy(tmp_path / "narrow" / "model.safetensors", tmp_path / "wide" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor \S+: expected \[.*32.*\], as config.json says, got \[.*16.*\]"):
        load_model(tmp_path / "wide")


def test_a_checkpoint_without_training_still_loads_its_model(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", detector(0))
    assert len(load_model(tmp_path / "checkpoint").categories) == 2
    with pytest.raises(CheckpointError, match=r"training\.safetensors: no such file"):
        load_training(tmp_path / "checkpoint")


def test_a_folder_around_a_checkpoint_is_an_error_that_names_the_checkpoint(tmp_path: Path) -> None:
    inner = tmp_path / "demo" / "checkpoint"
    save(inner, detector(0), training(1))
    with pytest.raises(
        CheckpointError, match=r"demo.config\.json: No such file or directory; did you mean .*checkpoint"
    ):
        load_model(inner.parent)
