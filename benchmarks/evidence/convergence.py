"""Convergence: one small detector with three kinds of attention on scenes of digits, epoch by epoch.

`python -m benchmarks.evidence.convergence` tries each learning rate for each kind, in two fifths of the epochs, trains
every kind in full with its two best ones, and once for each further seed with the better of the two; validation scenes
decide. Dense attention is trained once more in as few epochs as deformable, and deformable in half as many epochs more.
Test scenes judge what counts, on the way. Then an epoch of each kind is timed, turn by turn. Stopped, it goes on where
it was, and the result, named benchmarks/results/evidence-convergence.json, grows with every training. `--steps` does a
part: the trainings may share the machine with other work, the timing should not.

The kinds differ in `attention` and in nothing else: the same backbone, pretrained on digits, the same layers, learned
queries (one stage, as DETR), data, optimiser, schedule and loss. Each schedule is as long as the training: a warm-up of
as many steps for all, and a cosine down to zero.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.evidence import plots, results
from benchmarks.evidence.pretraining import pretrain
from deform_attn.detr.config.detector import AttentionKind, BackboneConfig, ModelConfig, TrainConfig, TransformerConfig
from deform_attn.detr.data.base import DetectionData
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.data.holdout import Part
from deform_attn.detr.errors import DivergenceError
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.engine import train_one_epoch
from deform_attn.detr.training.learner import Learner
from deform_attn.detr.training.processes import start_processes
from deform_attn.detr.training.validation import evaluate_model

NAME = "evidence-convergence"
STEPS = ("choose", "train", "time")
CHOOSING_SEED, PRETRAINING_SEED = 100, 101  # of no training that counts
# Of the test scenes: the first 200 have judged an earlier recipe, after which this one was made.
TESTED = range(200, 600)
# Dense attention in as few epochs as deformable, and deformable in half as many epochs more.
SHORT, LONG = "dense, short", "deformable, long"
TARGETS = (0.2, 0.4, 0.6)  # what AP the kinds are compared at, beside the one that dense attention has in the end
KEPT = ("AP", "AP50", "AP<16", "AP<32", "AP32-96")
PARTS = (
    "recipe",
    "parameters",
    "backbone_accuracy",
    "validation_AP",
    "in_full",
    "chosen",
    "tested",
    "runs",
    "verdict",
    "seconds_per_epoch",
)
ROUNDS = 3  # of timing, each kind once
Found = dict[str, Any]
Weights = Mapping[str, Any]  # arrays, which travel to other processes as they are
Backbone = Callable[[], Weights]  # learnt only if something is to be trained with it


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how: scenes of `size` pixels, `scenes` an epoch and `judged` to judge by; `epochs` by kind.

    `pretraining` epochs the backbone learns alone, and each of the `rates` is tried in the share `trying` of the kind's
    epochs. `model` and `training` are those of all kinds but for the attention, the epochs, the learning rate and the
    seed.
    """

    size: int
    scenes: int
    judged: int
    pretraining: int
    rates: tuple[float, ...]
    trying: float
    epochs: Mapping[AttentionKind, int]
    model: ModelConfig
    training: TrainConfig

    def model_of(self, kind: AttentionKind) -> ModelConfig:
        """Return the detector with that kind of attention."""
        return replace(self.model, transformer=replace(self.model.transformer, attention=kind))

    def training_of(self, kind: AttentionKind, rate: float, seed: int, share: float = 1.0) -> TrainConfig:
        """Return one training of that kind, over a share of its epochs."""
        return replace(self.training, epochs=max(1, round(share * self.epochs[kind])), lr=rate, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON reads it back."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


RECIPE = Recipe(
    size=128,
    scenes=800,
    judged=200,
    pretraining=10,
    rates=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    trying=0.4,
    epochs={"dense": 100, "deformable_single_scale": 10, "deformable": 10},
    model=ModelConfig(
        num_classes=10,
        strides=(8, 16),
        single_stride=8,
        # The backbone ends at stride 8, so that the kinds with one level have all of it; the other level comes after.
        backbone=BackboneConfig(channels=(16, 48, 96)),
        transformer=TransformerConfig(two_stage=False, feedforward_dim=512),  # of the width, as much as DETR's
    ),
    training=TrainConfig(batch_size=16),
)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run a block on one thread, whose results do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learn(
    recipe: Recipe, backbone: Weights, kind: AttentionKind, config: TrainConfig, judge: DetectionData
) -> list[dict[str, float]]:
    """Train a detector on one thread, and return a row of its loss and its metrics for about each of 20 epochs.

    The last row has its AP on validation scenes, too, as `validation_AP`. A training that diverges ends there, with
    metrics of zero.
    """
    rows: list[dict[str, float]] = []
    every = max(1, config.epochs // 20)
    with _one_thread(), _learner(recipe, backbone, kind, config) as (learner, data):
        detector = Detector(learner.model, data.categories, recipe.size)
        for epoch in range(config.epochs):
            try:
                losses = train_one_epoch(learner, data, epoch)
            except DivergenceError:
                return [*rows, {"epoch": epoch + 1, **dict.fromkeys((*KEPT, "validation_AP"), 0.0)}]
            if (epoch + 1) % every == 0 or epoch + 1 == config.epochs:
                metrics = evaluate_model(detector, judge)
                row = {"epoch": epoch + 1, "loss": losses["loss"], **{name: metrics[name] for name in KEPT}}
                rows.append({name: float(f"{value:.4g}") for name, value in row.items()})
        validation = DigitScenes("val", recipe.judged, size=recipe.size)
        rows[-1]["validation_AP"] = float(f"{evaluate_model(detector, validation)['AP']:.4g}")
    return rows


@contextmanager
def _learner(
    recipe: Recipe, backbone: Weights | None, kind: AttentionKind, config: TrainConfig
) -> Iterator[tuple[Learner, DigitScenes]]:
    data = DigitScenes("train", recipe.scenes, seed=config.seed, size=recipe.size)
    torch.manual_seed(config.seed)
    model = build_model(recipe.model_of(kind))
    if backbone is not None:
        model.backbone.load_state_dict({name: torch.from_numpy(array) for name, array in backbone.items()})
    with start_processes(model, config.precision, None) as processes:
        yield Learner(model, config, processes), data


def learn_backbone(recipe: Recipe, found: Found) -> Weights:
    """Return the weights that all backbones start from, and add to `found` how well they tell digits apart."""
    torch.manual_seed(PRETRAINING_SEED)
    model = build_model(recipe.model)
    data = DigitScenes("train", recipe.scenes, seed=PRETRAINING_SEED, size=recipe.size)
    judge = DigitScenes("val", recipe.judged, size=recipe.size)
    with _one_thread():
        found["backbone_accuracy"] = round(pretrain(model, data, judge, recipe.pretraining), 4)
    return {name: tensor.numpy() for name, tensor in model.backbone.state_dict().items()}


def choose(recipe: Recipe, backbone: Backbone, found: Found, save: Callable[[], object], processes: int) -> None:
    """Add to `found` what each kind is worth with each learning rate, on validation scenes, in a part of its epochs."""
    table: dict[str, dict[str, float]] = found.setdefault("validation_AP", {kind: {} for kind in recipe.epochs})
    missing = [(kind, rate) for kind in recipe.epochs for rate in recipe.rates if str(rate) not in table[kind]]
    trainings = {name: (name[0], recipe.training_of(*name, CHOOSING_SEED, recipe.trying)) for name in missing}
    judge = DigitScenes("val", recipe.judged, size=recipe.size)
    for (kind, rate), rows in _learn_all(recipe, backbone, trainings, judge, processes):
        table[kind][str(rate)] = rows[-1]["validation_AP"]
        save()


def train(
    recipe: Recipe, backbone: Backbone, found: Found, seeds: Sequence[int], save: Callable[[], object], processes: int
) -> None:
    """Add to `found` the curves, on test scenes, of each kind, of a short and a long training, and the verdict.

    With the first seed each kind is trained with its two best rates, of which validation scenes choose one for good.
    """
    judge = Part(DigitScenes("test", TESTED.stop, size=recipe.size), list(TESTED))
    found["tested"] = [TESTED.start, TESTED.stop]
    in_full: dict[str, dict[str, Any]] = found.setdefault("in_full", {kind: {} for kind in recipe.epochs})
    best = {kind: sorted(row, key=row.__getitem__)[-2:] for kind, row in found["validation_AP"].items()}
    finals = {
        (kind, rate): (kind, recipe.training_of(kind, float(rate), seeds[0]))
        for kind in recipe.epochs
        for rate in best[kind]
        if rate not in in_full[kind]
    }
    for (kind, rate), rows in _learn_all(recipe, backbone, finals, judge, processes):
        in_full[kind][rate] = rows
        save()
    found["chosen"] = {
        kind: float(max(rates, key=lambda rate: rates[rate][-1]["validation_AP"])) for kind, rates in in_full.items()
    }

    kinds: dict[str, tuple[AttentionKind, float]] = {kind: (kind, 1.0) for kind in recipe.epochs}
    kinds |= {SHORT: ("dense", min(recipe.epochs.values()) / recipe.epochs["dense"]), LONG: ("deformable", 1.5)}
    runs = found["runs"] = {name: found.get("runs", {}).get(name, {}) for name in kinds}
    for kind, rate in found["chosen"].items():
        runs[kind][str(seeds[0])] = in_full[kind][str(rate)]
    trainings = {
        (name, seed): (kind, recipe.training_of(kind, found["chosen"][kind], seed, share))
        for name, (kind, share) in kinds.items()
        for seed in seeds
        if str(seed) not in runs[name]
    }
    for (name, seed), rows in _learn_all(recipe, backbone, trainings, judge, processes):
        runs[name] = dict(sorted({**runs[name], str(seed): rows}.items()))
        save()
    found["verdict"] = verdict(runs)
    save()


def _learn_all(
    recipe: Recipe,
    backbone: Backbone,
    trainings: Mapping[Any, tuple[AttentionKind, TrainConfig]],
    judge: DetectionData,
    processes: int,
) -> Iterator[tuple[tuple[str, Any], list[dict[str, float]]]]:
    """Call `learn` for the trainings, side by side, and yield the name of each with its rows as soon as it ends."""
    if not trainings:
        return
    weights = backbone()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            names = {
                pool.submit(learn, recipe, weights, kind, config, judge): name
                for name, (kind, config) in trainings.items()
            }
            for done in as_completed(names):
                name, rows = names[done], done.result()
                print(
                    f"  {name[0]}, {name[1]}: AP {rows[-1]['AP']:.3f} after {rows[-1]['epoch']:.0f} epochs", flush=True
                )
                yield name, rows
        finally:
            pool.shutdown(cancel_futures=True)  # after an error those that wait need not be trained first


def time_epochs(recipe: Recipe, found: Found) -> None:
    """Add to `found` the seconds that an epoch of training takes each kind, without judging, the median of rounds."""
    seconds: dict[AttentionKind, list[float]] = {kind: [] for kind in recipe.epochs}
    with ExitStack() as stack:
        # Neither the cosine nor what the weights are matters to the clock.
        configs = {kind: replace(recipe.training_of(kind, recipe.rates[0], 0), epochs=ROUNDS + 1) for kind in seconds}
        learners = {kind: stack.enter_context(_learner(recipe, None, kind, config)) for kind, config in configs.items()}
        for epoch in range(ROUNDS + 1):
            for kind, (learner, data) in learners.items():
                start = time.perf_counter()
                train_one_epoch(learner, data, epoch)
                if epoch > 0:  # the first one warms up
                    seconds[kind].append(time.perf_counter() - start)
    found["seconds_per_epoch"] = {kind: float(f"{statistics.median(taken):.4g}") for kind, taken in seconds.items()}


def verdict(runs: Mapping[str, Mapping[str, list[Mapping[str, float]]]]) -> dict[str, dict[str, float | None]]:
    """Return for each training when its AP, the mean over the seeds, has reached each target for good, in epochs.

    The last target, `dense`, is the AP of dense attention in the end. None: it is never reached.
    """
    curves = {name: mean_curve(seeds) for name, seeds in runs.items()}
    targets = {f"{target:g}": target for target in TARGETS} | {"dense": curves["dense"][-1]["AP"]}
    return {
        name: {label: _reached(curve, target) for label, target in targets.items()} for name, curve in curves.items()
    }


def _reached(curve: Sequence[Mapping[str, float]], target: float) -> float | None:
    before = sum(1 for _ in itertools.dropwhile(lambda row: row["AP"] >= target, reversed(curve)))
    return curve[before]["epoch"] if before < len(curve) else None


def mean_curve(seeds: Mapping[str, list[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Return the AP at each epoch at which it was measured, the mean over the seeds."""
    return [
        {"epoch": rows[0]["epoch"], "AP": statistics.fmean(row["AP"] for row in rows)}
        for rows in zip(*seeds.values(), strict=True)
    ]


def begun(recipe: Recipe, path: Path) -> Found:
    """Return what an earlier run with the same recipe has found, or a beginning."""
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("recipe") == recipe.to_dict():
        return {name: before[name] for name in PARTS if name in before}
    models = {kind: build_model(recipe.model_of(kind)) for kind in recipe.epochs}
    counts = {kind: sum(p.numel() for p in model.parameters()) for kind, model in models.items()}
    return {"recipe": recipe.to_dict(), "parameters": counts}


def main() -> None:
    """Choose the rates, train, time, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="what to do (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="trainings side by side, a thread each")
    options = parser.parse_args()
    path = report.RESULTS / f"{NAME}.json"
    found = begun(RECIPE, path)

    def save() -> Path:
        return results.write(NAME, found)

    backbone = functools.cache(lambda: learn_backbone(RECIPE, found))
    if "choose" in options.steps:
        choose(RECIPE, backbone, found, save, options.processes)
    if "train" in options.steps:
        train(RECIPE, backbone, found, options.seeds, save, options.processes)
    if "time" in options.steps:
        time_epochs(RECIPE, found)
    print(f"wrote {save()}")
    if "runs" in found and "seconds_per_epoch" in found:
        print(f"wrote {plots.draw_convergence(found)}")


if __name__ == "__main__":
    main()
