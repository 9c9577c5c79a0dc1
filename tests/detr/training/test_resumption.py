import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from patches import Assorted, detector

from deform_attn.detr.checkpoints.checkpoint import load_model, save_model
from deform_attn.detr.checkpoints.training_state import Position, load_training
from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.errors import CheckpointError, TrainingStopped
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.engine import OnStep, Progress, fit
from deform_attn.detr.training.resumption import stoppable

CONFIG = TrainConfig(epochs=2, batch_size=2, warmup_steps=2, save_every=2)
PICTURES = 9  # five steps an epoch


def same_weights(first: Detector, second: Detector) -> bool:
    states = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def losses(path: Path) -> list[float]:
    return [record["loss"] for record in load_training(path).history]


def stop_at(epoch: int, step: int) -> OnStep:
    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            raise KeyboardInterrupt

    return stop


@dataclass(frozen=True)
class Whole:
    """A training of CONFIG on PICTURES that nothing stopped: what has learned, and the folder, which is only read."""

    detector: Detector
    folder: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Whole]:
    """Return a function that gives such a training with this dropout."""

    @functools.cache
    def trained(dropout: float) -> Whole:
        learner, folder = detector(dropout=dropout), tmp_path_factory.mktemp("whole") / "run"
        fit(learner, Assorted(PICTURES), CONFIG, folder)
        return Whole(learner, folder)

    return trained


# Each line is a piece of code for a child, whose number comes first and whose end is the line "dead".
TRAININGS = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import accelerate, torch  # once, rather than in each child
torch.set_num_threads(1)
from test_resumption import *
for line in sys.stdin:
    if child := os.fork():
        os.waitpid(child, 0)
        print("dead", flush=True)
    else:
        print(os.getpid(), flush=True)
        exec(json.loads(line))
        os._exit(0)
"""


class Trainings:
    """Trainings in processes of their own, one after the other."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._parent = subprocess.Popen([sys.executable, "-c", TRAININGS], stdin=pipe, stdout=pipe, text=True)
        self._child: int | None = None

    def read(self) -> str:
        """Return the next line that is printed."""
        assert self._parent.stdout is not None
        return self._parent.stdout.readline()

    def start(self, code: str) -> None:
        """Start a process that runs `code`, which has all names of this file."""
        print(json.dumps(code), file=self._parent.stdin, flush=True)
        self._child = int(self.read())

    def kill(self) -> None:
        """Kill the process that was started, and wait for its end."""
        assert self._child is not None
        os.kill(self._child, signal.SIGKILL)
        while (line := self.read()) != "dead\n":
            assert line, "the parent has ended"
        self._child = None

    def close(self) -> None:
        """End what still runs."""
        if self._child is not None:
            self.kill()
        self._parent.communicate()


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    made = Trainings()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("moment", "kept", "message"),
    [
        ((1, 1), (0, 0), "no epoch is kept$"),
        ((1, 3), (0, 2), r"all up to step 2 of epoch 1 of 2 is kept; continue with resume=True"),
        ((2, 5), (1, 4), r"all up to step 4 of epoch 2 of 2 is kept"),
    ],
)
def test_a_training_goes_on_after_the_last_step_that_was_saved_to_the_last_bit(
    tmp_path: Path,
    whole: Callable[[float], Whole],
    moment: tuple[int, int],
    kept: tuple[int, int],
    message: str,
) -> None:
    data = Assorted(PICTURES)
    with pytest.raises(TrainingStopped, match=message) as caught:
        fit(detector(dropout=0.2), data, CONFIG, tmp_path / "run", on_step=stop_at(*moment))
    assert (caught.value.kept, caught.value.steps) == kept
    resumed, steps = detector(dropout=0.2), []
    torch.manual_seed(1)  # nothing may depend on it
    fit(
        resumed, data, CONFIG, tmp_path / "run", resume=True,
        on_step=lambda progress: steps.append((progress.epoch, progress.step, progress.loss)),
    )  # fmt: skip
    assert steps[0][:2] == (kept[0] + 1, kept[1] + 1)
    assert same_weights(resumed, whole(0.2).detector)
    assert losses(tmp_path / "run") == losses(whole(0.2).folder)  # also of the epoch that was cut in two
    assert load_training(tmp_path / "run").position == Position()


def test_resuming_brings_the_models_own_files_up_to_the_state_of_the_training(
    tmp_path: Path, whole: Callable[[float], Whole]
) -> None:
    data, trained = Assorted(PICTURES), whole(0).detector
    shutil.copytree(whole(0).folder, tmp_path / "run")
    save_model(tmp_path / "run", detector())  # as a save leaves them that is killed before it comes to them
    assert not same_weights(load_model(tmp_path / "run"), trained)
    fit(detector(), data, CONFIG, tmp_path / "run", resume=True)
    assert same_weights(load_model(tmp_path / "run"), trained)


def test_saving_more_often_changes_nothing(tmp_path: Path, whole: Callable[[float], Whole]) -> None:
    seldom = detector()
    fit(seldom, Assorted(PICTURES), replace(CONFIG, save_every=0), tmp_path / "seldom")
    assert same_weights(whole(0).detector, seldom)


def test_how_often_to_save_may_change_when_a_training_is_resumed(tmp_path: Path) -> None:
    data = Assorted(PICTURES)
    with pytest.raises(TrainingStopped):
        fit(detector(), data, CONFIG, tmp_path / "run", on_step=stop_at(1, 3))
    fit(detector(), data, replace(CONFIG, save_every=3, workers=1), tmp_path / "run", resume=True)
    assert load_training(tmp_path / "run").config.save_every == 3


def test_the_seconds_of_an_epoch_count_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Assorted(PICTURES)
    waited, clock = 0, time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + waited)

    def wait_and_stop(progress: Progress) -> None:
        nonlocal waited
        if progress.step == 1:
            waited += 10_000
        stop_at(1, 3)(progress)

    with pytest.raises(TrainingStopped):
        fit(detector(), data, CONFIG, tmp_path / "run", on_step=wait_and_stop)
    history = fit(detector(), data, CONFIG, tmp_path / "run", resume=True)
    assert history[0]["seconds"] > 10_000 > history[1]["seconds"]


def test_a_position_that_cannot_be_is_refused_with_its_file(tmp_path: Path) -> None:
    fit(detector(), Assorted(2), TrainConfig(epochs=1, batch_size=2), tmp_path / "run")
    file = tmp_path / "run" / "training.safetensors"
    damaged = file.read_bytes().replace(rb"\"step\": 0", rb"\"step\":-1")  # of the same length
    assert damaged != file.read_bytes()
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"training\.safetensors: .*no place in an epoch"):
        load_training(tmp_path / "run")


def test_a_training_killed_at_any_moment_resumes_to_the_weights_of_one_that_was_not(
    tmp_path: Path, whole: Callable[[float], Whole], trainings: Trainings
) -> None:
    code = f"""
config = replace(CONFIG, save_every=1)
say = lambda progress: print(progress.epoch, progress.step, flush=True)
fit(detector(dropout=0.2), Assorted(PICTURES), config, {str(tmp_path / "run")!r}, resume=True, on_step=say)
"""
    config, data = replace(CONFIG, save_every=1), Assorted(PICTURES)
    moments = random.Random(time.time_ns())
    for lines in (1, 4):
        trainings.start(code)
        said = [trainings.read() for _ in range(lines)][-1]
        time.sleep(moments.uniform(0, 0.05))  # a step and its save take about as long
        trainings.kill()
        training, (epoch, step) = load_training(tmp_path / "run"), map(int, said.split())
        load_model(tmp_path / "run")
        done, steps = (epoch - 1) * 5 + step, len(training.history) * 5 + training.position.step
        assert steps >= done - 1, "no more than one interval is lost"
    resumed = detector(dropout=0.2)
    fit(resumed, data, config, tmp_path / "run", resume=True)
    assert same_weights(resumed, whole(0.2).detector)
    assert losses(tmp_path / "run") == losses(whole(0.2).folder)


@contextmanager
def limited_files() -> Iterator[None]:
    """Undo what the block does to the size of files, beyond which a write fails half-way as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_while_saving_is_one_line_with_the_file_and_keeps_the_checkpoint_before(
    tmp_path: Path, whole: Callable[[float], Whole]
) -> None:
    data = Assorted(PICTURES)

    def fill(progress: Progress) -> None:
        if progress.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with limited_files(), pytest.raises(OSError, match="too large") as caught:
        fit(detector(), data, CONFIG, tmp_path / "run", on_step=fill)
    file = os.fspath(tmp_path / "run" / "training.safetensors")
    assert str(caught.value) == f"[Errno 27] File too large; the checkpoint before it is kept: {file!r}"
    training = load_training(tmp_path / "run")
    assert (training.history, training.position.step) == ([], 2)
    resumed = detector()
    fit(resumed, data, CONFIG, tmp_path / "run", resume=True)
    assert same_weights(resumed, whole(0).detector)


def test_two_trainings_cannot_write_to_one_folder(tmp_path: Path, trainings: Trainings) -> None:
    code = f"""
stay = lambda progress: print("first", flush=True) if progress.epoch == 1 else time.sleep(600)
fit(detector(), Assorted(2), TrainConfig(epochs=9), {str(tmp_path / "run")!r}, on_step=stay)
"""
    trainings.start(code)
    assert trainings.read() == "first\n"  # it is in its second epoch now, or about to be
    config = TrainConfig(epochs=1, batch_size=2)
    for way in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(CheckpointError, match="run: another training writes there at the moment"):
            fit(detector(), Assorted(2), config, tmp_path / "run", **way)
    trainings.kill()
    fit(detector(), Assorted(2), config, tmp_path / "run", overwrite=True)
    fit(detector(), Assorted(2), config, tmp_path / "run", resume=True)
    assert not list((tmp_path / "run").glob(".*"))


def test_counting_what_is_kept_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Assorted(PICTURES)
    with pytest.raises(TrainingStopped):
        fit(detector(), data, CONFIG, tmp_path / "run", on_step=stop_at(1, 3))
    monkeypatch.delattr(
        "deform_attn.detr.checkpoints.training_state.read_tensors"
    )  # a second Ctrl-C may come meanwhile
    with pytest.raises(TrainingStopped) as caught, stoppable(tmp_path / "run", 2):
        raise KeyboardInterrupt
    assert (caught.value.kept, caught.value.steps) == (0, 2)
