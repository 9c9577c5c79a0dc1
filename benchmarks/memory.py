"""Memory that one call needs at its peak: `python -m benchmarks.memory CASE COMPETITOR [--trains]` prints it as JSON.

The growth of the resident set (VmHWM, which Linux lets a process set back) from just before a call to its peak, in a
process of its own. The competitor has run a tiny case before, so that libraries and threads are there; it has not run
the case itself, since runtimes keep their buffers from call to call.
"""

import argparse
import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import CASES, MEMORY
from benchmarks.peers import PEERS
from deform_attn.timing import Case, Op, training

MEASURED = CASES | {case.name: case for case in MEMORY}
STATUS = Path("/proc/self/status")
SET_BACK = Path("/proc/self/clear_refs")


def unavailable() -> str | None:
    """Return why this machine cannot tell."""
    return None if SET_BACK.exists() else "only Linux lets a process set its peak back"


def growth(case: Case, competitor: str, trains: bool, threads: int) -> dict[str, object]:
    """Return the peak growth in bytes of one call of `competitor`, and the bytes of what the call returns."""
    command = [sys.executable, "-m", "benchmarks.memory", case.name, competitor, "--threads", str(threads)]
    result = subprocess.run(command + ["--trains"] * trains, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure(case: Case, competitor: str, trains: bool, threads: int) -> dict[str, object]:
    """Do what `growth` says, in this process."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(trains)
    tiny = replace(case, spatial_shapes=tuple((5, 7) for _ in case.spatial_shapes), queries=3)
    peer = {peer.name: peer for peer in PEERS}.get(competitor)
    call = None
    for stage in (tiny, case):
        inputs = stage.inputs()
        tensors = inputs[:3]
        op: Op
        if peer is not None:
            op = peer.prepare(stage, threads)
        elif competitor == "ours":
            op = stage.op()
        else:
            op = stage.fused_op(inputs.references)
            tensors = (inputs.value, inputs.offsets, inputs.logits)
        direction = torch.ones(stage.batch, stage.query_count, stage.heads * stage.channels, dtype=stage.dtype)
        call = training(op, tensors, direction) if trains else lambda op=op, tensors=tensors: (op(*tensors),)
        del inputs, tensors, direction
        if stage is tiny:
            call()
    assert call is not None
    return {"case": case.name, "competitor": competitor, "trains": trains, **peak_of(call)}


def peak_of(call: Callable[[], Iterable[Tensor]]) -> dict[str, int]:
    """Return by how many bytes the resident set grows during `call`, and the bytes of what it returns."""
    ctypes.CDLL(None).malloc_trim(0)  # so that no page freed earlier is used again unseen
    before = _status("VmRSS")
    SET_BACK.write_text("5")
    returned = call()
    peak = _status("VmHWM")
    return {"peak_growth": max(0, peak - before), "returned": sum(tensor.nbytes for tensor in returned)}


def _status(name: str) -> int:
    """Return a field of this process's status, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=MEASURED)
    parser.add_argument("competitor", choices=["ours", "ours_fused", *(peer.name for peer in PEERS)])
    parser.add_argument("--trains", action="store_true", help="forward and backward")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(measure(MEASURED[options.case], options.competitor, options.trains, options.threads)))


if __name__ == "__main__":
    main()
