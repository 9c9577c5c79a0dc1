"""The shared library of CPU kernels (see native/include/): where it lies, how it is loaded and called."""

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from deform_attn.backends.native import library_file

_TORCH_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")


class NativeLibrary:
    """The loaded library. A call gives the GIL back while it runs."""

    def __init__(self, path: str) -> None:
        library_file.judge(path)
        self.path = path
        library = ctypes.CDLL(path)
        for name in ("isa", "isas", "torch_schemas"):
            getattr(library, f"deform_attn_{name}").restype = ctypes.c_char_p
        self.isas: list[str] = library.deform_attn_isas().decode().split()
        isa = library.deform_attn_isa()
        if isa is None:
            asked = os.environ.get("DEFORM_ATTN_ISA")
            raise OSError(f"DEFORM_ATTN_ISA: expected one of {', '.join(self.isas)}, got {asked!r}. Unset it")
        self.isa: str = isa.decode()
        self.torch_schemas: list[str] = library.deform_attn_torch_schemas().decode().splitlines()
        self._torch = _torch_library()
        self._register = library.deform_attn_register_with_torch
        self._register.argtypes, self._register.restype = [ctypes.c_char_p, ctypes.c_int32], ctypes.c_char_p
        self._run_row = library.deform_attn_run_row
        self._run_row.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]

    def register(self) -> str | None:
        """Register the kernels under the ops, which torch has, for the CPU; return what is in the way."""
        reason = self._register(os.fsencode(self._torch), 0)
        return None if reason is None else reason.decode()

    def parallel_for(self) -> int:
        """Return the address of torch's own parallel_for, so that its threads run the kernels, and no others."""
        function = ctypes.CDLL(str(self._torch)).torch_parallel_for
        return ctypes.cast(function, ctypes.c_void_p).value or 0

    def run_row(self, row: "ctypes.Array[ctypes.c_int64]") -> None:
        """Run a call that is laid out as one row of numbers (see `deform_attn_run_row` in native/include/)."""
        text = ctypes.create_string_buffer(1024)
        if self._run_row(row, text, len(text)):
            raise RuntimeError(text.value.decode())


def row_of(numbers: Sequence[int]) -> "ctypes.Array[ctypes.c_int64]":
    """Return numbers as the row that the library reads."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


def load() -> tuple[NativeLibrary | None, list[str]]:
    """Return the library, or None and why it does not load."""
    spec = importlib.util.find_spec("deform_attn._native")
    if spec is None or spec.origin is None:
        return None, ["the CPU kernels are not built; install a wheel, or `pip install .` with a C++ compiler"]
    try:
        return NativeLibrary(spec.origin), []
    except (OSError, AttributeError) as error:  # not for this machine, or without a function that is needed
        return None, [f"the CPU kernels do not load: {error}"]


def _torch_library() -> Path:
    folder = Path(torch.__file__).parent / "lib"
    path = next((folder / name for name in _TORCH_LIBRARIES if (folder / name).exists()), None)
    if path is None:
        raise OSError(f"none of {', '.join(_TORCH_LIBRARIES)} in {folder}")
    return path
