"""The op on a device, case by case: every competitor is judged by the maths in float64, then timed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.clock import ROUNDS, timed, total
from benchmarks.gpu.results import Row
from benchmarks.gpu.rivals import RIVALS, Rival
from benchmarks.measure import TOLERANCES, DisagreementError, Judge
from deform_attn.timing import Call, Case, Op, training

PASSES = ("forward", "backward", "deterministic")
"""Forward alone; forward and backward; the same under torch.use_deterministic_algorithms."""

OURS = ("ours", "ours fused")


def rows_of(
    case: Case, what: str, device: torch.device, rivals: Sequence[Rival] = RIVALS, rounds: int = ROUNDS
) -> Iterator[Row]:
    """Yield a row for each competitor of a case and pass; one that cannot run, or is wrong, has the reason in its row.

    Raises:
        DisagreementError: our output or a gradient is not what the maths says.
    """
    trains, inputs = what != "forward", case.inputs()
    judges = {name: Judge(case, inputs, fused=name == "ours fused") for name in OURS}
    ops: dict[str, Op] = {"ours": case.op(), "ours fused": case.fused_op(inputs.references.to(device))}
    absent: dict[str, str] = {}
    for rival in rivals:
        reason = rival.absent(case)
        if what == "deterministic":
            reason = "only ours is timed: torch's grid_sample raises"
        if reason is None:
            ops[rival.name] = rival.prepare(case, device)
        else:
            absent[rival.name] = reason
    errors, calls, moved_bytes = {}, {}, {}
    with _deterministic(what == "deterministic"), torch.set_grad_enabled(trains):
        for name, op in ops.items():
            judge = judges.get(name, judges["ours"])
            try:
                error = (judge.gradient_error if trains else judge.output_error)(_from_the_cpu(op, device))
            except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as refusal:
                if name in OURS:
                    raise
                absent[name] = f"refuses: {' '.join(str(refusal).split())[:200]}"
                continue
            if not error <= TOLERANCES[case.dtype]:
                if name in OURS:
                    raise DisagreementError(f"{name} is wrong on {case.name} in {case.dtype}, {what}: {error:.1e}")
                absent[name] = f"wrong: relative error {error:.1e}"
                continue
            errors[name] = error
            calls[name], moved_bytes[name] = _call(case, op, [t.to(device) for t in judge.tensors], trains)
        times = timed(calls, device, rounds)
    for name, found in times.items():
        seconds = found["device"] / 1e3
        yield (
            {"competitor": name}
            | {key: float(f"{number:.4g}") for key, number in found.items()}
            | {
                "ratio": float(f"{found['milliseconds'] / times['ours']['milliseconds']:.4g}"),
                "host share": float(f"{found['host'] / found['milliseconds']:.3g}"),
                "bytes a second": float(f"{moved_bytes[name] / seconds:.4g}"),
                "relative error": float(f"{errors[name]:.1e}"),
            }
        )
    for name, reason in absent.items():
        yield {"competitor": name, "absent": reason}


def _call(case: Case, op: Op, tensors: list[Tensor], trains: bool) -> tuple[Call, int]:
    """Return a call, and the bytes that it cannot avoid to read and write: each tensor once, each gradient once."""
    shape = case.batch, case.query_count, case.heads * case.channels
    output = torch.ones(shape, dtype=case.dtype, device=tensors[0].device)
    if not trains:
        return partial(op, *tensors), total(tensors) + output.nbytes
    return training(op, tensors, output), 3 * total(tensors) + 2 * output.nbytes


def _from_the_cpu(op: Op, device: torch.device) -> Op:
    """Return `op` as a function of tensors on the CPU, which computes on the device."""
    return lambda *tensors: op(*(tensor.to(device) for tensor in tensors)).cpu()


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
