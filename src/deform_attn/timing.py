"""How fast the op is on this machine: cases, a fair clock, and a short report against torch's grid_sample.

The long comparison, with every rival, is the folder benchmarks/ of the repository, which is built from these parts.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from deform_attn import deformable_attention, encoder_reference_points, explain, multi_scale_deformable_attention

Call = Callable[[], object]
Op = Callable[[Tensor, Tensor, Tensor], Tensor]


class Inputs(NamedTuple):
    """The tensors of a case, for both entry points; `locations` and `weights` say the same as the other three."""

    value: Tensor  # [N, S, M, D]
    locations: Tensor  # [N, Q, M, L, P, 2], or [N, Q, M, T, 2] where the levels' counts differ
    weights: Tensor  # [N, Q, M, L, P], or [N, Q, M, T]
    references: Tensor  # [N, Q, 1, 2]
    offsets: Tensor  # as locations, in pixels of their level
    logits: Tensor  # [N, Q, M, T]


@dataclass(frozen=True)
class Case:
    """A call of a certain size. Without `queries` there is one at each pixel's centre, as in an encoder."""

    name: str
    spatial_shapes: tuple[tuple[int, int], ...]  # (H, W)
    queries: int | None = None  # Q; their references are drawn uniformly from the map
    num_points: tuple[int, ...] = (4, 4, 4, 4)
    batch: int = 1
    heads: int = 8
    channels: int = 32
    dtype: torch.dtype = torch.float32  # of value; points and weights are float32, or float64 beside float64

    @property
    def pixels(self) -> int:
        """S."""
        return sum(H * W for H, W in self.spatial_shapes)

    @property
    def query_count(self) -> int:
        """Q."""
        return self.pixels if self.queries is None else self.queries

    @property
    def equal_points(self) -> bool:
        """Whether all levels have one count of points, so that points have an axis for levels."""
        return len(set(self.num_points)) == 1

    def inputs(self, seed: int = 0) -> Inputs:
        """Return its tensors, the same at each call: offsets drawn from N(0, 3 pixels), all else from N(0, 1)."""
        numbers = torch.Generator().manual_seed(seed)
        N, Q, M, D, T = self.batch, self.query_count, self.heads, self.channels, sum(self.num_points)
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        value = torch.randn(N, self.pixels, M, D, generator=numbers, dtype=dtype).to(self.dtype)
        if self.queries is None:
            references = encoder_reference_points(self.spatial_shapes, dtype=dtype)[:, :, :1].repeat(N, 1, 1, 1)
        else:
            references = torch.rand(N, Q, 1, 2, generator=numbers, dtype=dtype)  # [N, Q, 1, 2]
        offsets = 3 * torch.randn(N, Q, M, T, 2, generator=numbers, dtype=dtype)
        logits = torch.randn(N, Q, M, T, generator=numbers, dtype=dtype)
        sizes = [(W, H) for (H, W), P in zip(self.spatial_shapes, self.num_points, strict=True) for _ in range(P)]
        locations = references[:, :, None] + offsets / torch.tensor(sizes, dtype=dtype)  # [N, Q, M, T, 2]
        weights = logits.softmax(-1)  # [N, Q, M, T]
        if self.equal_points:
            grid = len(self.spatial_shapes), self.num_points[0]
            locations, weights, offsets = (tensor.unflatten(3, grid) for tensor in (locations, weights, offsets))
        return Inputs(value, locations, weights, references, offsets, logits)

    def op(self, backend: str | None = None) -> Op:
        """Return the classic op for this case as a function of value, locations and weights."""

        def ours(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return multi_scale_deformable_attention(
                value, self.spatial_shapes, locations, weights, num_points=self.num_points, backend=backend
            )

        return ours

    def fused_op(self, references: Tensor) -> Op:
        """Return the op from raw numbers for this case as a function of value, offsets and logits."""

        def ours(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
            return deformable_attention(
                value, self.spatial_shapes, references, offsets, logits, num_points=self.num_points
            )

        return ours


_PICTURE_800 = ((100, 167), (50, 84), (25, 42), (13, 21))  # strides 8 to 64 of 800 x 1333
_PICTURE_640 = ((80, 80), (40, 40), (20, 20), (10, 10))
ENC800 = Case("enc800", _PICTURE_800)
ENC640 = Case("enc640", _PICTURE_640)
DEC300 = Case("dec300", _PICTURE_800, queries=300)


def grid_sample_op(case: Case) -> Op:
    """Return the op as models without an extension compute it: torch's grid_sample, one call a level, then a sum."""

    def op(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        N, _, M, D = value.shape
        Q, T = locations.shape[1], sum(case.num_points)
        maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([H * W for H, W in case.spatial_shapes], dim=-1)
        grids = (2 * locations - 1).reshape(N, Q, M, T, 2).transpose(1, 2).flatten(0, 1)  # [N*M, Q, T, 2]
        points = [
            F.grid_sample(x.unflatten(-1, size), grid, "bilinear", "zeros", align_corners=False)  # [N*M, D, Q, P]
            for x, size, grid in zip(maps, case.spatial_shapes, grids.split(case.num_points, dim=2), strict=True)
        ]
        shares = weights.reshape(N, Q, M, T).transpose(1, 2).reshape(N * M, 1, Q, T)
        output = (torch.cat(points, dim=-1) * shares).sum(-1)  # [N*M, D, Q]
        return output.reshape(N, M * D, Q).transpose(1, 2).contiguous()  # [N, Q, M*D]

    return op


def training(op: Op, tensors: Sequence[Tensor], grad_output: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call that runs `op` forward and backward and returns the gradients of all `tensors`."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return lambda: torch.autograd.grad(op(*leaves), leaves, grad_output)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference as a fraction of the norm of `expected`; a number that is not finite: inf."""
    error = ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
    return error if error == error else float("inf")


def rounds(calls: Mapping[str, Call]) -> Iterator[dict[str, float]]:
    """Yield the seconds that each call took, round after round without end, all calls once a round.

    What disturbs the machine for a while so disturbs all of them. A sample is the mean over as many calls as fill 5 ms.
    A call that takes less than 0.1 s is first made once without the clock: that fetches its own arrays into the caches
    and lets the threads of the call before it go to sleep. The order turns round from round to round.
    """
    durations = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        durations[name] = max(time.perf_counter() - start, 1e-6)
    order = list(calls)
    while True:
        samples = dict.fromkeys(calls, 0.0)
        for name in order:
            call, repeats = calls[name], max(1, min(1000, int(5e-3 / durations[name])))
            if durations[name] < 0.1:
                call()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            samples[name] = (time.perf_counter() - start) / repeats
        yield samples
        order.reverse()


def machine() -> dict[str, object]:
    """Return what a time depends on: processor, cores, instruction set, memory, system and versions."""
    model, memory, fields = platform.processor() or platform.machine(), 0, {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, text = line.partition(":")
            fields[name.strip()] = text.strip()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    flags = fields.get("flags", fields.get("Features", "")).split()
    known = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")
    return {
        "processor": fields.get("model name", model),
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in known if name in flags],
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


def thread_count() -> str:
    """Return torch's number of threads in words."""
    number = torch.get_num_threads()
    return f"{number} thread" if number == 1 else f"{number} threads"


def report(seconds: float = 20.0) -> Iterator[str]:
    """Yield the lines of a table: this machine, the op here against grid_sample, for torch's number of threads.

    Args:
        seconds: how long the timing goes on, about; it is longer where three rounds of each case take longer.

    Raises:
        RuntimeError: the two disagree, so that no time would mean anything.

    Example:
        >>> from deform_attn import timing
        >>> next(timing.report()).startswith("deform-attn on")
        True
    """
    here = machine()
    yield f"deform-attn on {here['processor']}, {thread_count()}, torch {here['torch']}"
    yield f"{'float32, 8 heads of 32, 16 points':<36}{'backend':<13}{'ours':>11}{'grid_sample':>13}{'ratio':>8}"
    rows = ((ENC800, False), (ENC640, False), (DEC300, False), (ENC640, True))
    for case, trains in rows:
        tensors = case.inputs()[:3]
        backend = explain(tensors[0], case.spatial_shapes, *tensors[1:]).backend
        ours, theirs = case.op(), grid_sample_op(case)
        expected = theirs(*tensors)
        error = relative_error(ours(*tensors), expected)
        if error > 1e-4:
            raise RuntimeError(f"{case.name}: {backend} and grid_sample differ by {error:.1e} of the output.")
        calls: dict[str, Call] = {"ours": partial(ours, *tensors), "theirs": partial(theirs, *tensors)}
        if trains:
            direction = torch.ones_like(expected)
            calls = {
                "ours": training(ours, tensors, direction),
                "theirs": training(theirs, tensors, direction),
            }
        with torch.set_grad_enabled(trains):
            end, samples = time.perf_counter() + seconds / len(rows), []
            for sample in rounds(calls):
                samples.append(sample)
                if len(samples) >= 3 and time.perf_counter() > end:
                    break
        medians = {name: statistics.median(sample[name] for sample in samples) for name in calls}
        label = f"{case.name}, {case.query_count} queries, {'both ways' if trains else 'forward'}"
        yield (
            f"{label:<36}{backend:<13}{1e3 * medians['ours']:>8.2f} ms{1e3 * medians['theirs']:>10.1f} ms"
            f"{medians['theirs'] / medians['ours']:>7.1f}x"
        )
