"""Whole models of transformers on a device, stock against patched: inference and a training step, the same weights."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import end_to_end
from benchmarks.gpu.clock import ROUNDS, timed
from benchmarks.gpu.results import Row
from benchmarks.measure import DisagreementError
from benchmarks.models import Batch, WholeModel
from deform_attn import patch
from deform_attn.timing import Call

PASSES = ("inference", "training")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class OnDevice(WholeModel):
    """A whole model whose tensors are on `device`."""

    device: torch.device = CPU

    @classmethod
    def of(cls, case: WholeModel, device: torch.device) -> "OnDevice":
        """Return `case` on a device."""
        return cls(**{field.name: getattr(case, field.name) for field in fields(WholeModel)}, device=device)

    def model(self) -> nn.Module:
        """Return the model; it is made on the CPU, so that it is the same everywhere."""
        return WholeModel.model(replace(self, device=CPU)).to(self.device)

    def batch(self, dtype: torch.dtype = torch.float32) -> Batch:
        """Return one picture."""
        return _moved(super().batch(dtype), self.device)

    def targets(self, dtype: torch.dtype = torch.float32) -> Batch:
        """Return what the model asks for to compute its loss."""
        return _moved(super().targets(dtype), self.device)


def rows_of(
    case: WholeModel, what: str, dtype: torch.dtype, device: torch.device, rounds: int = ROUNDS
) -> Iterator[Row]:
    """Judge both in float64 on a smaller picture, and yield a row for each; below float32 they run under autocast.

    Raises:
        DisagreementError: patched, it computes something else.
    """
    case = OnDevice.of(case, device)
    stock = case.model()
    patched = copy.deepcopy(stock)
    attentions = [row.name for row in patch(patched).replaced]
    judge = end_to_end.inference if what == "inference" else end_to_end.training_step
    with end_to_end.float64():
        sides = end_to_end.in_float64({"stock": stock, "patched": patched})
        _, error = judge(end_to_end.smaller(case), sides, attentions)
    if not error <= end_to_end.TOLERANCES[what]:
        raise DisagreementError(f"{case.name}, {what}: patched and stock differ by {error:.1e}")
    del sides
    prepare = _inference if what == "inference" else _training
    calls = {"ours": prepare(case, patched, dtype), "stock": prepare(case, stock, dtype)}
    times = timed(calls, device, rounds)
    for name, found in times.items():
        yield (
            {"competitor": name}
            | {key: float(f"{number:.4g}") for key, number in found.items()}
            | {
                "ratio": float(f"{found['milliseconds'] / times['ours']['milliseconds']:.4g}"),
                "host share": float(f"{found['host'] / found['milliseconds']:.3g}"),
                "relative error": float(f"{error:.1e}"),
            }
        )


def _inference(case: OnDevice, model: nn.Module, dtype: torch.dtype) -> Call:
    model, batch = model.eval(), case.batch()

    def call() -> Any:
        with torch.no_grad(), _autocast(case.device, dtype):
            return model(**batch)

    return call


def _training(case: OnDevice, model: nn.Module, dtype: torch.dtype) -> Call:
    if case.training_pixels is not None:
        case = replace(case, pixels=case.training_pixels)
    model, batch = copy.deepcopy(model).train(), case.batch() | case.targets()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)  # every step is the same one

    def call() -> Tensor:
        torch.manual_seed(3)  # of dropout and of denoising queries
        optimizer.zero_grad()
        with _autocast(case.device, dtype):
            loss: Tensor = model(**batch).loss
        loss.backward()
        optimizer.step()
        return loss

    return call


def _autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _moved(value: Any, device: torch.device) -> Any:
    """Return tensors, and those in lists and tables, on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    return [_moved(one, device) for one in value] if isinstance(value, list) else value
