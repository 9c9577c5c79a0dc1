"""The physical limit of a case: limit.c, compiled here, run by torch's own threads."""

import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from deform_attn.timing import Case

SOURCE = Path(__file__).with_name("limit.c")


def unsupported(case: Case) -> str | None:
    """Return why there is no limit line for `case`."""
    if case.dtype not in (torch.float32, torch.float64):
        return "a sum in float32 takes half-precision loads apart first"
    return None if sys.platform == "linux" else "it borrows the threads of libtorch_cpu.so"


def loads(case: Case) -> int:
    """Return how many loads of 64 bytes read the four corners of all points of `case`."""
    corners = 4 * case.batch * case.query_count * case.heads * sum(case.num_points)
    return corners * case.channels * case.dtype.itemsize // 64


def prepare(case: Case, value: Tensor) -> Callable[[], None]:
    """Return the call that does as many loads and fused multiply-adds as `case`, walking over `value`."""
    library = _library(case.dtype)
    threads = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).torch_parallel_for
    run = ctypes.cast(threads, ctypes.c_void_p)
    value = value.contiguous()
    return lambda: library.limit(run, value.data_ptr(), value.nbytes, loads(case), 0.5)


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "limit.so"
        command = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        command += ["-DDOUBLE"] if dtype == torch.float64 else []
        subprocess.run([*command, str(SOURCE), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
    library.limit.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_double,
    ]
    library.limit.restype = None
    return library
