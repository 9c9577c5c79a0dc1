"""Judging and timing: every competitor is compared with the maths in float64 first, and only then timed."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import limit
from benchmarks.peers import Peer
from deform_attn import explain, reference
from deform_attn.timing import Call, Case, Inputs, Op, relative_error, rounds, training

# Norm of the error by norm of the truth. float32: locations are rounded to 1e-5 of a pixel on maps 200 wide, and so is
# what is read there. Half precision: the output is rounded once (2**-9 and 2**-12 on average). A misplaced or forgotten
# point is off by 1e-2 and more.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
JUDGED_QUERIES = 256
QUIET = 0.1  # cores that others may keep busy
MIN_ROUNDS = 5

Rows = dict[str, dict[str, object]]


class DisagreementError(RuntimeError):
    """Our own result is not what the maths says; no time of it is worth anything."""


class Judge:
    """The truth for one case and entry point, in float64, for some queries spread over all of them.

    `tensors` are the tensors that the op is differentiated by; the first is value, the others have an axis of queries.
    """

    def __init__(self, case: Case, inputs: Inputs, fused: bool = False) -> None:
        self.case = case
        self.tensors = (inputs.value, inputs.offsets, inputs.logits) if fused else inputs[:3]
        self.queries = torch.linspace(0, case.query_count - 1, min(JUDGED_QUERIES, case.query_count)).long()
        self._off_kinks = off_kinks(case, inputs.locations)
        self._references = inputs.references.double()[:, self.queries] if fused else None

    def output_error(self, op: Op) -> float:
        """Return the relative error of `op` at the judged queries."""
        actual = op(*self.tensors)[:, self.queries]
        return relative_error(actual, self._truth(*self._judged()))

    def gradient_error(self, op: Op) -> float:
        """Return the largest relative error of the gradients of all tensors, for a direction at the judged queries."""
        case, tensors = self.case, self.tensors
        shape = (case.batch, len(self.queries), case.heads * case.channels)
        direction = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(case.dtype)
        everywhere = torch.zeros(case.batch, case.query_count, shape[-1], dtype=case.dtype)
        everywhere[:, self.queries] = direction
        actual = training(op, tensors, everywhere)()
        leaves = [tensor.requires_grad_() for tensor in self._judged()]
        expected = torch.autograd.grad(self._truth(*leaves), leaves, direction.double())
        errors = [relative_error(actual[0], expected[0])]
        for index in (1, 2):
            ours, truth = actual[index][:, self.queries], expected[index].reshape(actual[index][:, self.queries].shape)
            if index == 1:
                # On a kink of the bilinear surface two correct float32 formulas may take the slope of either side.
                smooth = self._off_kinks[:, self.queries].reshape(*ours.shape[:-1], 1)
                ours, truth = ours * smooth, truth * smooth
            errors.append(relative_error(ours, truth))
        return max(errors)

    def _judged(self) -> list[Tensor]:
        """Return value and the points and weights of the judged queries in float64, flat over levels."""
        N, Q, M, T = self.case.batch, len(self.queries), self.case.heads, sum(self.case.num_points)
        points, weights = (tensor.double()[:, self.queries] for tensor in self.tensors[1:])
        return [self.tensors[0].double(), points.reshape(N, Q, M, T, 2), weights.reshape(N, Q, M, T)]

    def _truth(self, value: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        shapes, counts = self.case.spatial_shapes, self.case.num_points
        if self._references is None:
            return reference.multi_scale_deformable_attention(value, shapes, points, weights, counts)
        return reference.deformable_attention(value, shapes, self._references, points, weights, counts)


def off_kinks(case: Case, locations: Tensor) -> Tensor:
    """Return which locations lie further than a thousandth of a pixel from the lines that join pixel centres."""
    N, Q, M, T = case.batch, case.query_count, case.heads, sum(case.num_points)
    sizes = [(W, H) for (H, W), P in zip(case.spatial_shapes, case.num_points, strict=True) for _ in range(P)]
    pixels = locations.double().reshape(N, Q, M, T, 2) * torch.tensor(sizes) - 0.5
    return ((pixels - pixels.round()).abs() > 1e-3).all(-1)  # [N, Q, M, T]


class Bystanders:
    """How many cores others keep busy."""

    def __init__(self) -> None:
        self._start, self._before = time.perf_counter(), self._busy_elsewhere()

    def lap(self) -> float | None:
        """Return the cores that others kept busy since the lap before; None where the system does not tell."""
        now, after = time.perf_counter(), self._busy_elsewhere()
        seconds, self._start = now - self._start, now
        if after is None or self._before is None:
            return None
        busy, self._before = (after - self._before) / seconds, after
        return max(0.0, busy)

    @staticmethod
    def _busy_elsewhere() -> float | None:
        if not Path("/proc/stat").exists():
            return None
        user, nice, system, _, _, irq, softirq, steal = (
            int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy - sum(os.times()[:4])


def timed(calls: dict[str, Call], seconds: float, baseline: str, wait: float = 0) -> tuple[Rows, float | None]:
    """Return median, quartiles and ratio to `baseline` of interleaved calls, and how many cores others kept busy.

    A ratio is that of the medians; its quartiles are those of the ratios of each round. Rounds in which others kept
    more than `QUIET` cores busy do not count, and are made up for, when others are quiet, in the `wait` minutes after
    `seconds`. Those over, with fewer than five quiet rounds all of them count.
    """
    start, bystanders = time.perf_counter(), Bystanders()
    last = start + seconds + 60 * wait
    quiet: list[dict[str, float]] = []
    every: list[dict[str, float]] = []
    block: list[dict[str, float]] = []
    busy_quiet: list[float] = []
    busy_every: list[float] = []
    began = start
    for sample in rounds(calls):
        block.append(sample)
        now = time.perf_counter()
        if now - began < 0.3 and now - start < seconds:
            continue  # the system counts in hundredths of a second
        cores = bystanders.lap() or 0.0
        every, busy_every = every + block, [*busy_every, cores]
        if cores <= QUIET:
            quiet, busy_quiet = quiet + block, [*busy_quiet, cores]
        while cores > QUIET and time.perf_counter() < last:
            time.sleep(1)
            cores = bystanders.lap() or 0.0
        now = time.perf_counter()
        if len(quiet) >= MIN_ROUNDS and now - start > seconds:
            break
        if len(every) >= MIN_ROUNDS and now > last:
            break
        block, began = [], now
    if len(quiet) < MIN_ROUNDS:
        quiet, busy_quiet = every, busy_every
    samples = {name: [sample[name] for sample in quiet] for name in calls}
    base = samples[baseline]
    rows: Rows = {}
    for name, times in samples.items():
        ratios = [time / other for time, other in zip(times, base, strict=True)]
        rows[name] = {
            "median_ms": _round(1e3 * statistics.median(times)),
            "quartiles_ms": [_round(1e3 * quartile) for quartile in _quartiles(times)],
            "ratio": _round(statistics.median(times) / statistics.median(base)),
            "ratio_quartiles": [_round(quartile) for quartile in _quartiles(ratios)],
            "rounds": len(times),
        }
    return rows, None if bystanders.lap() is None else round(statistics.mean(busy_quiet), 2)


def compare(
    case: Case,
    peers: Sequence[Peer],
    threads: int,
    seconds: float,
    *,
    trains: bool = False,
    wait: float = 0,
    say: Callable[[str], None] = print,
) -> dict[str, object]:
    """Judge and time our two entry points, the limit, and `peers` on `case`; return it as plain JSON.

    A rival that cannot run or that is wrong stays in the result with the reason and without a time.

    Raises:
        DisagreementError: our own result is wrong.
    """
    torch.set_num_threads(threads)
    inputs = case.inputs()
    classic, fused = Judge(case, inputs), Judge(case, inputs, fused=True)
    ours: dict[str, tuple[Op, Judge]] = {
        "ours": (case.op(), classic),
        "ours_fused": (case.fused_op(inputs.references), fused),
    }
    errors: dict[str, float] = {}
    absent: dict[str, str] = {}
    competitors = dict(ours)
    for peer in peers:
        reason = peer.unavailable() or peer.unsupported(case, trains)
        if reason is None:
            competitors[peer.name] = (peer.prepare(case, threads), classic)
        else:
            absent[peer.name] = reason
    with torch.set_grad_enabled(trains):
        for name, (op, judge) in list(competitors.items()):
            errors[name] = judge.gradient_error(op) if trains else judge.output_error(op)
            if not errors[name] <= TOLERANCES[case.dtype]:
                message = f"{name} is wrong on {case.name}: relative error {errors[name]:.1e}"
                if name in ours:
                    raise DisagreementError(message)
                say(message)
                absent[name] = f"wrong: relative error {errors[name]:.1e}"
                del competitors[name]
        direction = torch.randn(
            case.batch, case.query_count, case.heads * case.channels, generator=torch.Generator().manual_seed(2)
        ).to(case.dtype)
        calls: dict[str, Call] = {
            name: training(op, judge.tensors, direction) if trains else partial(op, *judge.tensors)
            for name, (op, judge) in competitors.items()
        }
        if not trains and limit.unsupported(case) is None:
            calls["limit"] = limit.prepare(case, inputs.value)
        # The slowest take turns with us alone: they would make the others' rounds so long that none is undisturbed.
        apart = {peer.name for peer in peers if peer.apart}
        rows, busy = timed({name: call for name, call in calls.items() if name not in apart}, seconds, "ours", wait)
        for name in apart & set(calls):
            pair, busy_meanwhile = timed({"ours": calls["ours"], name: calls[name]}, seconds, "ours", wait)
            rows[name] = {**pair[name], "our_median_ms": pair["ours"]["median_ms"], "busy_meanwhile": busy_meanwhile}
    for name, row in rows.items():
        if name in errors:
            row["relative_error"] = float(f"{errors[name]:.1e}")
    rows.update({name: {"absent": reason} for name, reason in absent.items()})
    backend = explain(inputs.value, case.spatial_shapes, *inputs[1:3], num_points=case.num_points).backend
    return {"case": described(case), "backend": backend, "busy_elsewhere": busy, "times": rows}


def described(case: Case) -> dict[str, object]:
    """Return a case as plain JSON."""
    return {
        "spatial_shapes": [list(size) for size in case.spatial_shapes],
        "queries": case.query_count,
        "references": "pixel centres" if case.queries is None else "uniform",
        "num_points": list(case.num_points),
        "batch": case.batch,
        "heads": case.heads,
        "channels": case.channels,
        "dtype": str(case.dtype).removeprefix("torch."),
    }


def _quartiles(numbers: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return low, high


def _round(number: float) -> float:
    """Return `number` to four digits."""
    return float(f"{number:.4g}")
