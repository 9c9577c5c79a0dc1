"""The clock of a device: calls take turns; each has its whole time, the device's, the host's, and its memory."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import torch

from deform_attn.timing import Call

ROUNDS = 15
BATCH = 5e-3  # seconds that the calls of one sample fill
MOST_CALLS = 100  # in one sample: a device queues some hundred launches, then the host waits
COPIED = 2**28  # bytes, more than any cache holds

Times = dict[str, float]


def timed(calls: Mapping[str, Call], device: torch.device, rounds: int = ROUNDS) -> dict[str, Times]:
    """Return of each call the medians over `rounds`, in milliseconds, and its peak memory in bytes.

    All calls are timed once a round, in an order that turns, so that what disturbs the machine disturbs all of them.
    `milliseconds` is from the first call of a sample until the device has done the last, for each call; `host` until
    the last call has returned, which waits for nothing; `device` is between two events, behind copies that keep the
    device busy until all calls are queued. Where there is no GPU the three are one.
    """
    repeats, memory = {}, {}
    for name, call in calls.items():
        call()  # compiles
        call()
        _wait(device)
        seconds, _ = _wall(call, device, 1)
        repeats[name] = max(1, min(MOST_CALLS, int(BATCH / max(seconds, 1e-6))))
        memory[name] = _peak(call, device)
    copies = _Copies(device)
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            whole, host = _wall(calls[name], device, repeats[name])
            alone = copies.behind(calls[name], repeats[name], host * repeats[name]) if device.type == "cuda" else whole
            samples[name].append((whole, alone, host))
        order.reverse()
    found = {}
    for name, rows in samples.items():
        whole, alone, host = (1e3 * statistics.median(column) for column in zip(*rows, strict=True))
        found[name] = {"milliseconds": whole, "device": alone, "host": host, "peak bytes": float(memory[name])}
    return found


def copied_bytes_a_second(device: torch.device) -> float:
    """Return how many bytes a second a copy on the device reads and writes."""
    return _Copies(device).bytes_a_second()


class _Copies:
    """Copies on the device: a limit to compare with, and what keeps it busy while the host queues calls."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        size = COPIED if device.type == "cuda" else 2**22
        self.source = torch.zeros(size, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)
        self.seconds = statistics.median(self._samples())

    def bytes_a_second(self) -> float:
        return 2 * self.source.numel() / self.seconds

    def behind(self, call: Call, repeats: int, host: float) -> float:
        """Return the device's seconds for one of `repeats` calls, which take the host `host` seconds in all."""
        for _ in range(1 + int(2 * host / self.seconds)):
            self.target.copy_(self.source)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeats

    def _samples(self) -> Iterator[float]:
        for _ in range(5):
            yield _wall(lambda: self.target.copy_(self.source), self.device, 10)[0]


def _wall(call: Call, device: torch.device, repeats: int) -> tuple[float, float]:
    """Return the host's seconds for one of `repeats` calls, until the device has done all and until all are queued."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    queued = time.perf_counter()
    _wait(device)
    done = time.perf_counter()
    return (done - start) / repeats, (queued - start) / repeats


def _peak(call: Call, device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def total(tensors: Sequence[torch.Tensor]) -> int:
    """Return the bytes of the tensors."""
    return sum(tensor.nbytes for tensor in tensors)
