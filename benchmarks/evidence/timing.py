"""Timing of the evidence: calls in turns, and the median of each."""

import statistics
import time
from collections.abc import Mapping

from deform_attn.timing import Call, rounds

MIN_ROUNDS = 3


def medians(calls: Mapping[str, Call], seconds: float) -> tuple[dict[str, float], int]:
    """Return the median seconds of each of the calls, to four digits, and of how many rounds: `MIN_ROUNDS` at least."""
    end, samples = time.perf_counter() + seconds, []
    for sample in rounds(calls):
        samples.append(sample)
        if len(samples) >= MIN_ROUNDS and time.perf_counter() > end:
            break
    found = {name: statistics.median(sample[name] for sample in samples) for name in calls}
    return {name: float(f"{median:.4g}") for name, median in found.items()}, len(samples)
