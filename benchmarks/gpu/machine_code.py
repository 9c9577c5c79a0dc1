"""The machine code of a compiled kernel: its instructions, its registers, and how wide it reads and adds up."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Widths = Mapping[int, int]  # instructions by the bits that each lane moves

# An instruction of NVIDIA's, behind its address and what it depends on.
_SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
_GCN = re.compile(r"^\s+((?:[sv]|ds|flat|global|buffer|scratch)_\w+)", re.MULTILINE)
_GCN_BITS = {"ubyte": 8, "sbyte": 8, "ushort": 16, "sshort": 16, "short": 16, "dword": 32, "f32": 32, "f64": 64}


@dataclass(frozen=True)
class Code:
    """What is in a kernel: how often each instruction is, and its resources for a lane.

    `stack` is in bytes. `spills` are the instructions that put a register there (NVIDIA), or such registers (AMD).
    """

    instructions: Counter[str]
    registers: int
    stack: int
    spills: int
    reads: Widths
    atomics: Widths


def code_of(kernel: Any) -> Code:
    """Return the code of a kernel that Triton compiled."""
    return _of_nvidia(kernel.asm["cubin"]) if "cubin" in kernel.asm else _of_amd(kernel.asm["amdgcn"])


def _of_nvidia(binary: bytes) -> Code:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        code, usage = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-sass", "-res-usage")
        )
    counts = Counter(name for name in _SASS.findall(code) if name != "NOP")
    used = {key: int(number) for key, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Code(
        counts,
        used["REG"],
        used["STACK"] + used["LOCAL"],
        sum(number for name, number in counts.items() if name.startswith("STL")),
        _widths(counts, ("LDG",), _bits_of_nvidia),
        _widths(counts, ("RED", "ATOMG"), _bits_of_nvidia),
    )


def _bits_of_nvidia(name: str) -> int:
    if found := re.search(r"F(\d+)x(\d)", name):  # RED.E.ADD.F32x4, as some assemblers spell it
        return int(found[1]) * int(found[2])
    parts = name.split(".")
    if found := next((part for part in parts if part in ("64", "128")), None):
        return int(found)
    lanes = next((int(part[1:]) for part in parts if re.fullmatch(r"[xv][24]", part)), 1)
    narrow = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "F64": 64}
    return lanes * next((narrow[part] for part in parts if part in narrow), 32)


def _of_amd(text: str) -> Code:
    counts = Counter(name for name in _GCN.findall(text) if name not in ("s_nop", "s_code_end"))

    def noted(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])  # type: ignore[index]

    return Code(
        counts,
        noted("vgpr_count"),
        noted("private_segment_fixed_size"),
        noted("vgpr_spill_count") + noted("sgpr_spill_count"),
        _widths(counts, ("global_load", "buffer_load", "flat_load"), _bits_of_amd),
        _widths(counts, ("global_atomic", "buffer_atomic", "flat_atomic"), _bits_of_amd),
    )


def _bits_of_amd(name: str) -> int:
    bits = next(bits for part, bits in _GCN_BITS.items() if part in name)
    return bits * int(found[1]) if (found := re.search(r"dwordx(\d)", name)) else bits


def _widths(counts: Counter[str], names: tuple[str, ...], bits_of: Any) -> Widths:
    widths: Counter[int] = Counter()
    for name, number in counts.items():
        if name.startswith(names):
            widths[bits_of(name)] += number
    return dict(sorted(widths.items(), reverse=True))
