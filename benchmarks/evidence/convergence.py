"""Convergence: one small detector with three kinds of attention on scenes of digits, epoch by epoch.

`python -m benchmarks.evidence.convergence --choose` tries the learning rates for each kind on validation scenes;
without it every kind trains with its best one, once for each seed, and is judged on test scenes after every epoch.
Both go on where they were stopped and add to benchmarks/results/evidence-convergence.json.

The kinds differ in `attention` and in nothing else: the same backbone, layers, learned queries (one stage: proposals
would hand dense attention what it is slow to learn), data, optimiser, schedule and loss. Each schedule is as long as
the kind's own training: a cosine down to zero.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.evidence import plots, results
from deform_attn.detr.checkpoint import Detector
from deform_attn.detr.config import AttentionKind, ModelConfig, TrainConfig, TransformerConfig
from deform_attn.detr.data.base import DetectionData
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.engine import train_one_epoch
from deform_attn.detr.learner import Learner
from deform_attn.detr.model import build_model
from deform_attn.detr.processes import start_processes
from deform_attn.detr.validation import evaluate_model

NAME = "evidence-convergence"
SIZE, SCENES, JUDGED = 160, 1000, 200  # pixels; scenes an epoch; scenes to judge by
RATES = (3e-4, 1e-3, 3e-3)
KINDS: dict[AttentionKind, int] = {"dense": 120, "deformable_single_scale": 12, "deformable": 12}
"""The kinds of attention, and how many epochs each learns."""
CHOOSING_SEED = 100  # of no training that counts
KEPT = ("AP", "AP50", "AP<16", "AP<32", "AP32-96")
MODEL = ModelConfig(num_classes=10, strides=(8, 16), single_stride=16, transformer=TransformerConfig(two_stage=False))
TRAINING = TrainConfig(batch_size=16)


def model_config(kind: AttentionKind) -> ModelConfig:
    """Return the detector with that kind of attention."""
    return replace(MODEL, transformer=replace(MODEL.transformer, attention=kind))


def learn(
    kind: AttentionKind, rate: float, seed: int, judge: DetectionData, epochs: int | None = None
) -> Iterator[dict[str, float]]:
    """Train a detector, and yield after each epoch its loss, the seconds of training so far and its metrics."""
    config = replace(TRAINING, epochs=epochs or KINDS[kind], lr=rate, seed=seed)
    data = DigitScenes("train", SCENES, seed=seed, size=SIZE)
    torch.manual_seed(seed)
    model = build_model(model_config(kind))
    detector, seconds = Detector(model, data.categories, SIZE), 0.0
    with start_processes(model, config.precision, None) as processes:
        learner = Learner(model, config, processes)
        for epoch in range(config.epochs):
            start = time.perf_counter()
            losses = train_one_epoch(learner, data, epoch)
            seconds += time.perf_counter() - start
            metrics = evaluate_model(detector, judge)
            row = {"epoch": epoch + 1, "loss": losses["loss"], "seconds": seconds}
            yield {name: float(f"{value:.4g}") for name, value in {**row, **{k: metrics[k] for k in KEPT}}.items()}


def choose(found: dict[str, Any], save: Callable[[], object], say: Callable[[str], None] = print) -> None:
    """Add to `found` what each kind is worth with each learning rate, on validation scenes, and the best one."""
    judge = DigitScenes("val", JUDGED, size=SIZE)
    table: dict[str, dict[str, float]] = found.setdefault("validation_AP", {})
    for kind in KINDS:
        row = table.setdefault(kind, {})
        for rate in RATES:
            if str(rate) not in row:
                *_, last = learn(kind, rate, CHOOSING_SEED, judge)
                row[str(rate)] = last["AP"]
                say(f"  {kind}, learning rate {rate:g}: AP {last['AP']:.3f} after {KINDS[kind]} epochs")
                save()
        found.setdefault("chosen", {})[kind] = float(max(row, key=row.__getitem__))
        save()


def train(
    found: dict[str, Any], seeds: list[int], save: Callable[[], object], say: Callable[[str], None] = print
) -> None:
    """Add to `found` the curve of each kind and seed, on test scenes."""
    judge = DigitScenes("test", JUDGED, size=SIZE)
    for kind in KINDS:
        runs = found.setdefault("runs", {}).setdefault(kind, {})
        for seed in seeds:
            if str(seed) not in runs:
                runs[str(seed)] = list(learn(kind, found["chosen"][kind], seed, judge))
                last = runs[str(seed)][-1]
                say(f"  {kind}, seed {seed}: AP {last['AP']:.3f} after {len(runs[str(seed)])} epochs")
                save()


def verdict(runs: Mapping[str, Mapping[str, list[Mapping[str, float]]]]) -> dict[str, dict[str, float | None]]:
    """Return for each kind but dense how soon it reaches dense's final AP, the means over the seeds compared.

    `epoch` is the first one at which it is reached, `share` that one as a share of dense's epochs, and `time_share` its
    seconds of training as a share of dense's; None where it is never reached.
    """
    curves = {kind: _mean_curve(seeds) for kind, seeds in runs.items()}
    goal = curves["dense"][-1]
    result: dict[str, dict[str, float | None]] = {}
    for kind, curve in curves.items():
        if kind != "dense":
            first = next((row for row in curve if row["AP"] >= goal["AP"]), None)
            result[kind] = {
                "epoch": None if first is None else first["epoch"],
                "share": None if first is None else round(first["epoch"] / goal["epoch"], 3),
                "time_share": None if first is None else round(first["seconds"] / goal["seconds"], 3),
            }
    return result


def _mean_curve(seeds: Mapping[str, list[Mapping[str, float]]]) -> list[dict[str, float]]:
    return [
        {name: sum(row[name] for row in rows) / len(rows) for name in ("epoch", "seconds", "AP")}
        for rows in zip(*seeds.values(), strict=True)
    ]


def main() -> None:
    """Choose the rates, or train, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--choose", action="store_true", help="find the learning rate of each kind first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    path = report.RESULTS / f"{NAME}.json"
    found = _begun(path)

    def save() -> Path:
        return results.write(NAME, found)

    if options.choose or "chosen" not in found:
        choose(found, save)
    if not options.choose:
        train(found, options.seeds, save)
        found["verdict"] = verdict(found["runs"])
        print(f"wrote {save()} and {plots.draw_convergence(found)}")


def _begun(path: Path) -> dict[str, Any]:
    """Return what an earlier run with the same recipe has found, or a beginning."""
    recipe = {
        "size": SIZE,
        "scenes": SCENES,
        "judged": JUDGED,
        "epochs": dict(KINDS),
        "model": MODEL.to_dict(),
        "training": TRAINING.to_dict(),
    }
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("recipe") == json.loads(json.dumps(recipe)):
        kept = ("recipe", "parameters", "validation_AP", "chosen", "runs")
        return {name: before[name] for name in kept if name in before}
    counts = {kind: sum(p.numel() for p in build_model(model_config(kind)).parameters()) for kind in KINDS}
    return {"recipe": recipe, "parameters": counts}


if __name__ == "__main__":
    main()
