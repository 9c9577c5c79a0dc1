"""The shared library of CPU kernels (see native/include/deform_attn.h): where it lies, how it is loaded and called."""

import ctypes
import importlib.util
import os
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from deform_attn.backends.native import library_file
from deform_attn.messages import fail

# The fields of `deform_attn_call` in native/include/deform_attn.h, in order; each takes 8 bytes.
_CALL = struct.Struct("=35qd8q")
pack = _CALL.pack
_STATUS = {2: "DEFORM_ATTN_ISA names no instruction set of this machine", 3: "a thread failed"}
_TORCH_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")


class NativeLibrary:
    """The loaded library. A call gives the GIL back while it runs."""

    def __init__(self, path: str) -> None:
        library_file.judge(path)
        library = ctypes.CDLL(path)
        for name, result in (("isa", ctypes.c_char_p), ("isas", ctypes.c_char_p), ("call_size", ctypes.c_int64)):
            getattr(library, f"deform_attn_{name}").restype = result
        size = library.deform_attn_call_size()
        if size != _CALL.size:
            raise OSError(f"{path} belongs to another version (its calls have {size} bytes, not {_CALL.size})")
        self.isas: list[str] = library.deform_attn_isas().decode().split()
        isa = library.deform_attn_isa()
        if isa is None:
            asked = os.environ.get("DEFORM_ATTN_ISA")
            raise OSError(f"DEFORM_ATTN_ISA: expected one of {', '.join(self.isas)}, got {asked!r}. Unset it")
        self.isa: str = isa.decode()
        self.parallel_for = _torch_parallel_for()
        self._functions: list[Any] = [library.deform_attn_forward, library.deform_attn_backward]
        for function in self._functions:
            function.argtypes = [ctypes.c_char_p]
            function.restype = ctypes.c_int32

    def forward(self, *fields: float) -> None:
        """Run the forward pass of one call, given the fields of `deform_attn_call`."""
        self.forward_packed(_CALL.pack(*fields))

    def forward_packed(self, call: bytes) -> None:
        """Run the forward pass of one `deform_attn_call`, laid out by `pack`."""
        status = self._functions[0](call)
        if status:
            self._check(status)

    def backward(self, *fields: float) -> None:
        """Run the backward pass of one call, given the fields of `deform_attn_call`."""
        self._check(self._functions[1](_CALL.pack(*fields)))

    def _check(self, status: int) -> None:
        if status == 1:
            raise MemoryError("deform_attn: no memory for the kernels' working arrays")
        if status == 4:
            expected = "levels of together S < 2^31 pixels and T points, as value and the points have"
            fail("spatial_shapes, num_points", expected, "others", "Compare the sizes.")
        if status:
            raise RuntimeError(f"deform_attn: {_STATUS.get(status, status)}")


def load() -> tuple[NativeLibrary | None, list[str]]:
    """Return the library, or None and why it does not load."""
    spec = importlib.util.find_spec("deform_attn._native")
    if spec is None or spec.origin is None:
        return None, ["the CPU kernels are not built; install a wheel, or `pip install .` with a C++ compiler"]
    try:
        return NativeLibrary(spec.origin), []
    except (OSError, AttributeError) as error:  # not for this machine, or without a function that is needed
        return None, [f"the CPU kernels do not load: {error}"]


@lru_cache(maxsize=256)
def levels(spatial_shapes: tuple[int, ...], num_points: tuple[int, ...]) -> tuple[int, Callable[[], Any]]:
    """Return the address of the levels' table `[L, 4]` (H, W, first pixel, P), and what keeps it alive."""
    rows: list[int] = []
    first = 0
    for H, W, P in zip(spatial_shapes[::2], spatial_shapes[1::2], num_points, strict=True):
        rows += (H, W, first, P)
        first += H * W
    table = (ctypes.c_int64 * len(rows))(*rows)
    return ctypes.addressof(table), lambda: table


def _torch_parallel_for() -> int:
    """Return the address of torch's own parallel_for, so that its threads run the kernels, and no others."""
    folder = Path(torch.__file__).parent / "lib"
    path = next((folder / name for name in _TORCH_LIBRARIES if (folder / name).exists()), None)
    if path is None:
        raise OSError(f"none of {', '.join(_TORCH_LIBRARIES)} in {folder}")
    function = ctypes.CDLL(str(path)).torch_parallel_for
    return ctypes.cast(function, ctypes.c_void_p).value or 0
