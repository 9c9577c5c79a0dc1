"""Deaths: processes killed at each of their calls that change a file, one process a call.

Run as `python deaths.py saves FOLDER AFTER BEFORE`, or `deaths.py trainings FOLDER`, it writes how many deaths there
were. The folders that the dead have left lie under FOLDER, for a test to look at.
"""

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate  # once, rather than in each process  # noqa: F401
import torch
import torch.distributed as dist
from patches import Assorted, detector
from safetensors.torch import save_file

from deform_attn.detr.checkpoints import checkpoint as checkpoints
from deform_attn.detr.checkpoints.checkpoint import save
from deform_attn.detr.checkpoints.training_state import TrainingState, load_trained
from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.files import read_tensors
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.engine import fit

_CHANGES = ("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def die_at(number: int, folder: Path) -> None:
    """Kill this process when its call of this `number` (from 1) that changes a file in `folder` is about to begin."""
    calls, fsync = itertools.count(1), os.fsync

    def count() -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def is_inside(path: object) -> bool:
        # What rmtree removes it names by the last part alone.
        return isinstance(path, str | os.PathLike) and (not os.path.isabs(path) or Path(path).is_relative_to(folder))

    def hear(event: str, arguments: Sequence[object]) -> None:
        is_change = event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES)
        if is_change and is_inside(arguments[0]):
            count()

    def fsync_or_die(descriptor: int) -> None:
        count()
        fsync(descriptor)

    sys.addaudithook(hear)
    os.fsync = fsync_or_die


def fork(action: Callable[[], object]) -> int:
    """Start a process that does `action`, and return its number."""
    child = os.fork()
    if not child:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)  # after a traceback
    return child


def status(child: int) -> int:
    """Wait for the process `child` and return its exit status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def old() -> Detector:
    return detector(width=16)


def new() -> Detector:
    return replace(detector(), categories=(Category(7, "seven"), Category(8, "eight")))


def new_before() -> Detector:
    """Return `new` with other weights."""
    learner = new()
    for parameter in learner.model.parameters():
        parameter.data.add_(1)
    return learner


def training(epochs: int) -> TrainingState:
    history = [{"epoch": float(i + 1), "loss": 0.1, "seconds": 2.5} for i in range(epochs)]
    return TrainingState(TrainConfig(epochs=9), history, {"a.step": torch.tensor(float(epochs))}, 7)


def write_first_format(folder: Path) -> None:
    """Write what the version before the single training file left in `folder`."""
    save(folder, old(), training(1))
    tensors = read_tensors(folder / "training.safetensors", "optimizer.")
    save_file(tensors, folder / "training.safetensors")
    (folder / "training.json").write_text('{"pictures": 7, "history": []}')


BEFORE: dict[str, Callable[[Path], object]] = {
    "nothing": Path.mkdir,
    "another model": lambda folder: save(folder, old()),
    "another training": lambda folder: save(folder, old(), training(1)),
    "the save before": lambda folder: save(folder, new_before(), training(1)),
    "a training of the first format": write_first_format,
}
"""What is in a folder before the save whose process is killed."""

AFTER = {"a training": training(2), "a model": None}
"""What is saved with the detector `new`."""


def saves(folder: Path, after: str, before: str) -> int:
    """Kill the save of one of AFTER over one of BEFORE; each leaves a folder called by its number."""
    BEFORE[before](folder / "0")
    for number in itertools.count(1):
        target = folder / str(number)
        shutil.copytree(folder / "0", target)

        def die(target: Path = target, number: int = number) -> None:
            die_at(number, target)
            save(target, new(), AFTER[after])

        if status(fork(die)) != -signal.SIGKILL:
            return number - 1
    raise AssertionError


CONFIG = TrainConfig(epochs=1, batch_size=1, warmup_steps=1, save_every=2)
PROCESSES = 2


def train(folder: Path, rank: int, number: int, **options: Any) -> None:
    """Train as one of two processes; the first one is killed at the call of this `number` in its first save."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    store = f"file://{folder}.store{options}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    if rank == 0 and number:
        whole_save = checkpoints.save

        def save_and_die(*arguments: Any) -> None:
            die_at(number, folder)
            whole_save(*arguments)
            os._exit(0)

        checkpoints.save = save_and_die
    learner = replace(detector(norm="group", dropout=0.2), categories=Assorted.categories)
    fit(learner, Assorted(3 * PROCESSES), CONFIG, folder, **options)


def train_together(folder: Path, number: int = 0, **options: Any) -> int:
    """Return how the first of two processes that `train` has ended."""
    first, second = (fork(lambda rank=rank: train(folder, rank, number, **options)) for rank in range(PROCESSES))
    ended = status(first)
    if number:
        os.kill(second, signal.SIGKILL)  # as their launcher does
    status(second)
    return ended


def trainings(folder: Path) -> int:
    """Kill a training of two processes that replaces another one, and resume it.

    Each leaves a folder as it was when the process died, and one called `{number} resumed`; `whole` is of a training
    that was not killed.
    """
    os.environ |= {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES), "OMP_NUM_THREADS": "1"}
    save(folder / "0", old(), training(1))
    shutil.copytree(folder / "0", folder / "whole")
    assert train_together(folder / "whole", overwrite=True) == 0
    for number in itertools.count(1):
        target, resumed = folder / str(number), folder / f"{number} resumed"
        shutil.copytree(folder / "0", target)
        if train_together(target, number, overwrite=True) != -signal.SIGKILL:
            return number - 1
        shutil.copytree(target, resumed)
        is_new = load_trained(resumed).model.config != old().model.config
        assert train_together(resumed, resume=is_new, overwrite=not is_new) == 0
    raise AssertionError


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    action, place, *which = sys.argv[1:]
    sys.stdout.write(str({"saves": saves, "trainings": trainings}[action](Path(place), *which)))
