"""Two processes on one machine, talking through gloo, against one with the doubled batch."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from patches import Assorted, detector

from deform_attn.detr.checkpoints.training_state import load_training, without_nan
from deform_attn.detr.config.detector import TrainConfig
from deform_attn.detr.data.batch import Sample
from deform_attn.detr.errors import CheckpointError, ConfigError, DataError, ProcessError, TrainingStopped
from deform_attn.detr.model.deformable_detr import DeformableDetr
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training import processes
from deform_attn.detr.training.engine import History, Progress, fit
from deform_attn.detr.training.processes import Processes, start_processes
from deform_attn.detr.training.validation import evaluate_model

CONFIG = TrainConfig(epochs=2, batch_size=2, warmup_steps=2, lr=3e-3)
PICTURES = 9  # two steps of four and one of a single picture, so that one process has none


def exact_detector(**settings: Any) -> Detector:
    """In float64, because Adam makes whole steps of rounding errors where a gradient should be zero."""
    learner = detector(norm="group", **settings)
    learner.model.double()
    return learner


def train(path: Path, config: TrainConfig, learner: Detector, **options: Any) -> tuple[History, list[float]]:
    losses: list[float] = []
    data = Assorted(PICTURES)
    history = fit(learner, data, config, path, on_step=lambda progress: losses.append(progress.loss), **options)
    return history, losses


def weights(learner: Detector) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def train_to_the_end(folder: Path, rank: int) -> dict[str, Any]:
    learner = exact_detector()
    if rank:  # the processes need not begin with the same weights
        learner.model.apply(lambda module: [p.data.add_(1) for p in module.parameters(recurse=False)])
    history, losses = train(folder / "whole", CONFIG, learner, validation=Assorted(5))
    return {"history": history, "losses": losses, "weights": weights(learner)}


def train_and_resume(folder: Path, rank: int) -> dict[str, Any]:
    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise KeyboardInterrupt

    config = replace(CONFIG, save_every=1)
    whole = detector(norm="group", dropout=0.2)
    history, _ = train(folder / "unstopped", config, whole)
    caught = None
    try:
        fit(
            detector(norm="group", dropout=0.2), Assorted(PICTURES), config, folder / "stopped",
            on_step=stop if rank == 0 else None,
        )  # fmt: skip
    except TrainingStopped as error:
        caught = str(error)
    resumed = detector(norm="group", dropout=0.2)
    again, losses = train(folder / "stopped", config, resumed, resume=True)
    return {
        "stopped": caught,
        "losses": losses,
        "same": all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items()),
        "histories": [[{k: v for k, v in one.items() if k != "seconds"} for one in h] for h in (history, again)],
    }


def detect_together(folder: Path, rank: int) -> dict[str, Any]:
    learner = detector(norm="group")
    with (
        start_processes(learner.model, "float32") as both,
        pytest.MonkeyPatch.context() as patches,
    ):
        patches.setattr("deform_attn.detr.training.validation.evaluate", lambda truth, found: {"found": found})
        return evaluate_model(learner, Assorted(PICTURES), 2, both)


class Broken(Assorted):
    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"picture {index} is broken")
        return super().__getitem__(index)


def train_with_a_broken_picture(folder: Path, rank: int) -> str:
    data = Broken(PICTURES)
    data.broken = range(PICTURES) if rank == 1 else ()
    try:
        fit(detector(), data, CONFIG, folder / "broken")
    except (DataError, ProcessError) as error:
        return repr(error)
    return "no error"


def train_on_a_full_disk(folder: Path, rank: int) -> str:
    with pytest.MonkeyPatch.context() as patches:
        if rank == 0:
            patches.setattr("deform_attn.detr.checkpoints.checkpoint.save", full_disk)
        try:
            fit(detector(), Assorted(PICTURES), CONFIG, folder / "full")
        except (OSError, ProcessError) as error:
            return repr(error)
    return "no error"


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


SCENARIOS: tuple[Callable[[Path, int], Any], ...] = (
    train_to_the_end,
    train_and_resume,
    detect_together,
    train_with_a_broken_picture,
    train_on_a_full_disk,
)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    for scenario in SCENARIOS:
        torch.save(scenario(folder, rank), folder / f"{scenario.__name__}.{rank}")
    dist.barrier()
    # Without taking torch down, which was seen to wait for ever in its own threads.
    os._exit(0)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder where two processes have left what came out of each scenario."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patches:
        patches.setenv("GLOO_SOCKET_IFNAME", "lo")
        patches.setenv("OMP_NUM_THREADS", "1")  # accelerate warns without
        spawned: Any = torch.multiprocessing.spawn(work, args=(folder,), nprocs=2, join=False)
        end = time.monotonic() + 240
        while not spawned.join(timeout=5):
            if time.monotonic() > end:
                for process in spawned.processes:
                    process.kill()
                pytest.fail("the two processes do not come to an end")
    return folder


def outcomes(folder: Path, scenario: Callable[[Path, int], Any]) -> list[Any]:
    return [torch.load(folder / f"{scenario.__name__}.{rank}", weights_only=False) for rank in range(2)]


def test_two_processes_train_like_one_with_the_doubled_batch(two: Path, tmp_path: Path) -> None:
    first, second = outcomes(two, train_to_the_end)
    single = exact_detector()
    config = replace(CONFIG, batch_size=2 * CONFIG.batch_size)
    history, losses = train(tmp_path / "single", config, single, validation=Assorted(5))
    assert len(losses) == 6
    # The losses are float32 when they are reported.
    assert first["losses"] == pytest.approx(losses, rel=1e-6)
    assert second["losses"] == []  # only the main process tells
    assert without_nan(first["history"]) == without_nan(second["history"])
    for actual, expected in zip(first["history"], history, strict=True):
        for name, value in expected.items():
            if name != "seconds":
                assert actual[name] == pytest.approx(value, rel=1e-6, nan_ok=True), name
    for name, expected in weights(single).items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        # Sums of two halves round differently from the sum of the whole; Adam divides them by their size.
        torch.testing.assert_close(first["weights"][name], expected, rtol=1e-8, atol=1e-8)


def test_the_comparison_of_weights_sees_a_training_with_another_batch(tmp_path: Path, two: Path) -> None:
    other = exact_detector()
    train(tmp_path / "other", CONFIG, other)
    changed = outcomes(two, train_to_the_end)[0]["weights"]
    assert any(not torch.allclose(changed[name], tensor, rtol=1e-4) for name, tensor in weights(other).items())


def test_two_processes_find_in_their_parts_what_one_finds_in_all_pictures(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deform_attn.detr.training.validation.evaluate", lambda truth, found: {"found": found})
    expected = evaluate_model(detector(norm="group"), Assorted(PICTURES), 2)
    assert {found["image_id"] for found in expected["found"]} == set(range(PICTURES))
    assert outcomes(two, detect_together) == [expected, expected]


def test_two_processes_resume_in_the_middle_of_an_epoch_to_the_last_bit(two: Path) -> None:
    for outcome in outcomes(two, train_and_resume):
        assert "all up to step 2 of epoch 2 of 2 is kept" in outcome["stopped"]  # Ctrl-C reached the main one alone
        assert outcome["same"]
        assert outcome["histories"][0] == outcome["histories"][1]
    assert [len(outcome["losses"]) for outcome in outcomes(two, train_and_resume)] == [1, 0]


def test_a_training_of_two_processes_is_not_resumed_by_one(two: Path) -> None:
    assert load_training(two / "stopped").processes == 2
    with pytest.raises(CheckpointError, match=r"began with processes 2 \(now 1\)"):
        train(two / "stopped", CONFIG, detector(norm="group", dropout=0.2), resume=True)


def test_an_error_in_one_process_ends_the_other_too(two: Path) -> None:
    assert outcomes(two, train_with_a_broken_picture) == [
        "ProcessError('another process of this training has failed; its own message says why')",
        "DataError('picture 2 is broken')",
    ]
    first, second = outcomes(two, train_on_a_full_disk)
    assert first == "OSError(28, 'No space left on device')"
    assert second.startswith("ProcessError")


def test_the_state_of_float16s_scaler_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No CPU is offered float16; here one gets it all the same, as accelerate sets it up on a GPU.
    make = processes._new_accelerator

    def with_scaler(model: DeformableDetr, _: str, device: torch.device | None) -> Any:
        accelerator = make(model, "float32", device)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=3)
        return accelerator

    monkeypatch.setattr(processes, "_new_accelerator", with_scaler)
    monkeypatch.setattr(processes, "_checked", lambda accelerator, model, *_: Processes(accelerator, model.mean.device))
    config = replace(CONFIG, precision="float16", save_every=1)

    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise KeyboardInterrupt

    whole, resumed, dtypes = detector(), detector(), set()
    whole.model.transformer.register_forward_hook(lambda *hooked: dtypes.add(hooked[2][0][-1].logits.dtype))
    history, losses = train(tmp_path / "whole", config, whole)
    assert dtypes == {torch.float16}
    with pytest.raises(TrainingStopped):
        fit(detector(), Assorted(PICTURES), config, tmp_path / "run", on_step=stop)
    scaler = load_training(tmp_path / "run").scaler
    assert scaler["scale"] < 2**17, "a step was skipped"
    again, rest = train(tmp_path / "run", config, resumed, resume=True)
    assert rest == losses[-len(rest) :]
    assert [one["loss"] for one in again] == [one["loss"] for one in history]
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())
    assert load_training(tmp_path / "run").scaler == load_training(tmp_path / "whole").scaler


def test_float16_is_refused_on_a_cpu_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'float16' needs a CUDA GPU, the device is cpu; choose 'bfloat16'"):
        train(tmp_path / "half", replace(CONFIG, precision="float16"), detector())


def test_an_accelerator_of_the_callers_own_is_used_and_must_agree_with_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    expected, _ = train(tmp_path / "without", CONFIG, detector())
    mixed = replace(CONFIG, precision="bfloat16")
    accelerator = Accelerator(cpu=True)
    try:
        actual, _ = train(tmp_path / "with", CONFIG, detector(), accelerator=accelerator)
        assert [one["loss"] for one in actual] == [one["loss"] for one in expected]
        with pytest.raises(ConfigError, match=r"its mixed_precision is 'no', TrainConfig\.precision 'bfloat16' needs"):
            train(tmp_path / "other", mixed, detector(), accelerator=accelerator)
        with pytest.raises(ConfigError, match=r"precision: 'bfloat16' is refused by accelerate"):
            train(tmp_path / "other", mixed, detector())
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="does not join the launched processes"):
            train(tmp_path / "other", CONFIG, detector(), accelerator=accelerator)
        monkeypatch.delenv("WORLD_SIZE")
        monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
        with pytest.raises(ConfigError, match="is for meta, the model is on cpu"):
            train(tmp_path / "other", CONFIG, detector(), accelerator=accelerator)
        monkeypatch.undo()
        accelerator.gradient_accumulation_steps = 2
        with pytest.raises(ConfigError, match="gradient_accumulation_steps must be 1"):
            train(tmp_path / "other", CONFIG, detector(), accelerator=accelerator)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    train(tmp_path / "mixed", mixed, detector())
    train(tmp_path / "again", CONFIG, detector())  # what fit makes for itself leaves nothing behind


LAUNCHED = """
import atexit
import os
import sys
import torch.distributed as dist

# What is registered first runs last. In one piece, which the other process's output cannot split.
atexit.register(lambda: os.write(1, f"in a group at the end: {dist.is_initialized()}\\n".encode()))
from patches import Assorted
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TrainConfig, TransformerConfig
from deform_attn.detr.training.engine import fit
from deform_attn.detr.model.deformable_detr import build_model

# Its fourth stage, at stride 32, is computed and not used.
source = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1],
          "layer_type": "basic"}
small = TransformerConfig(width=16, num_heads=2, feedforward_dim=16, encoder_layers=1, decoder_layers=1, num_queries=8)
model = build_model(ModelConfig(2, backbone=BackboneConfig("transformers", source=source), transformer=small))
model.transformer.register_forward_hook(lambda module, inputs, outputs: print(outputs[0][-1].logits.dtype))
fit(Detector(model, Assorted.categories), Assorted(5), TrainConfig(epochs=1, batch_size=1), sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "count"),
    [
        (["torch.distributed.run", "--standalone", "--nproc-per-node=2"], 2),
        # On CPUs accelerate's own launcher starts one process, without MPI. Its precision is not the config's.
        (["accelerate.commands.launch", "--cpu", "--num_processes=1", "--mixed_precision=bf16"], 1),
    ],
    ids=["torchrun", "accelerate"],
)
def test_a_launched_training_has_the_processes_and_the_precision_that_it_was_given(
    tmp_path: Path, launcher: list[str], count: int
) -> None:
    (tmp_path / "script.py").write_text(LAUNCHED)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", *launcher, str(tmp_path / "script.py"), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "torch.float32" in done.stdout
    assert "bfloat16" not in done.stdout
    # A group that is still open would abort the process now and then.
    assert done.stdout.count("in a group at the end: False") == count
    training = load_training(tmp_path / "run")
    assert (training.processes, len(training.history)) == (count, 1)
