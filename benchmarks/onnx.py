"""Whole models as files of ONNX: each form in each runtime that takes it, beside PyTorch, stock and patched.

All sides stand in one process, with the same weights and threads, and take turns. `python -m benchmarks.run --only
onnx` runs it. Files have the size of the one picture that is timed.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import DisagreementError, timed
from benchmarks.models import MODELS
from benchmarks.packages import not_installed
from benchmarks.runtimes import RUNTIMES, onnxruntime
from deform_attn import patch, use_backend
from deform_attn.detr.config.detector import ModelConfig
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.export import to_onnx
from deform_attn.timing import Call

# The form `native` is our operator in the file, which ONNX Runtime alone can be given.
FORMS = {
    "gridsample": RUNTIMES,
    "gather": RUNTIMES,
    "native": {"ONNX Runtime": partial(onnxruntime, ours=True)},
}
PACKAGES = "transformers", "onnx", "onnxscript", "onnxruntime", "openvino"
# Of a query: how far its logits and box may be from the nearest of the other side's, as a share of their norm. Rounding
# grows through dozens of layers, and moves the order of proposals that are nearly alike.
TOLERANCE = 1e-3
LEAST_AGREED = 0.98  # the share of the queries that must be within it

Sides = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Exported:
    """A model by how tables call it, its picture's (H, W), and `sides`, which returns it as it comes and patched."""

    label: str
    pixels: tuple[int, int]
    sides: Callable[[], Sides]


class Rows(nn.Module):
    """What a detector says of each query: `[Q, K + 4]`, logits and box."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the rows of one picture `[1, 3, H, W]`."""
        output = self.model(images)
        boxes = output.pred_boxes if hasattr(output, "pred_boxes") else output.boxes
        return torch.cat((output.logits, boxes), -1)[0]  # [Q, K + 4]


class GridSample(nn.Module):
    """A model of ours as others would run it: with torch's grid_sample."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return what the model does."""
        with use_backend("grid_sample"):
            output: Tensor = self.model(images)
        return output


def _of_transformers(name: str) -> Callable[[], Sides]:
    def sides() -> Sides:
        stock = Rows(MODELS[name].model()).eval()
        patched = copy.deepcopy(stock)
        patch(patched)
        return {"stock": stock, "patched": patched}

    return sides


def _detector() -> Sides:
    torch.manual_seed(0)
    model = Rows(build_model(ModelConfig(num_classes=80))).eval()
    return {"stock": GridSample(model), "patched": model}


EXPORTED = {
    **{
        name: Exported(MODELS[name].label, MODELS[name].pixels, _of_transformers(name))
        for name in ("deformable_detr", "rt_detr")
    },
    "detector": Exported("our detector, 640 x 640", (640, 640), _detector),
}


def exported_models(
    threads: int, seconds: float, wait: float = 0, say: Callable[[str], None] = print
) -> dict[str, object]:
    """Return what `compare_exported` does of each model, by name."""
    if (reason := not_installed(PACKAGES)) is not None:
        say(f"  skipped, {reason}")
        return {}
    return {name: compare_exported(case, threads, seconds, wait, say) for name, case in EXPORTED.items()}


def compare_exported(
    case: Exported, threads: int, seconds: float, wait: float = 0, say: Callable[[str], None] = print
) -> dict[str, object]:
    """Judge and time `case` on all sides; return the times, and the share of queries on which each agrees with stock.

    Raises:
        DisagreementError: a side computes something else.
    """
    sides = case.sides()
    images = torch.rand(1, 3, *case.pixels, generator=torch.Generator().manual_seed(1))
    calls: dict[str, Call] = {name: _call(model, images) for name, model in sides.items()}
    with tempfile.TemporaryDirectory() as folder:
        for form, takers in FORMS.items():
            file = Path(folder) / f"{form}.onnx"
            # It is judged below, with all others.
            to_onnx(sides["patched"], (images,), file, form=form, dynamic=False, verify=False)
            for name, runtime in takers.items():
                run = runtime(file, threads)
                calls[f"{name}, {form}"] = lambda run=run: run(images)[0]
        stock = calls["stock"]()
        agreed = {name: agreement(call(), stock) for name, call in calls.items() if name != "stock"}
        if wrong := {name: share for name, share in agreed.items() if not share >= LEAST_AGREED}:
            raise DisagreementError(f"{case.label}: these agree with stock on too few queries: {wrong}")
        rows, busy = timed(calls, seconds, "patched", wait)
    ratios = ", ".join(f"{name} {row['ratio']}x" for name, row in rows.items())
    say(f"  {case.label}: {ratios}, {busy} cores busy elsewhere")
    return {"pixels": list(case.pixels), "times": rows, "agreed": agreed, "busy_elsewhere": busy}


def _call(model: nn.Module, images: Tensor) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            rows: Tensor = model(images)
        return rows

    return call


def agreement(rows: Tensor, expected: Tensor) -> float:
    """Return the share of the `expected [Q, K]` that have a neighbour among `rows`, whose order may be another."""
    distances = torch.cdist(expected.double(), rows.double()).amin(1) / expected.double().norm(dim=1)
    return round((distances <= TOLERANCE).double().mean().item(), 3)
