"""A shared library's file, judged before it is loaded: whether it is one for this machine, and is all there.

The loader of the system maps a truncated file without complaint, and the process dies when it reads what is missing. So
the ends of all parts that the file's own headers name are compared with its size. Formats: ELF (System V ABI, chapter
4), Mach-O (mach-o/loader.h, mach-o/fat.h), PE (Microsoft, PE Format).
"""

import platform
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

# What each format calls this machine's processor.
_ELF = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183, "riscv64": 243, "ppc64le": 21, "s390x": 22}
_MACH_O = {"x86_64": 0x01000007, "arm64": 0x0100000C}
_PE = {"amd64": 0x8664, "x86_64": 0x8664, "arm64": 0xAA64}
_LC_SEGMENT_64 = 0x19


def judge(path: str) -> None:
    """Judge the library at `path`.

    Raises:
        OSError: it cannot be read, is no library for this machine, or is shorter than its headers say.
    """
    data = Path(path).read_bytes()
    read, machines = {"darwin": (_mach_o, _MACH_O), "win32": (_pe, _PE)}.get(sys.platform, (_elf, _ELF))
    try:
        end = max(read(data, machines.get(platform.machine().lower())))
    except struct.error:
        raise OSError(f"{path} ends within its headers, at {len(data)} bytes. Install deform-attn again") from None
    except ValueError as error:
        raise OSError(f"{path} {error}. Install deform-attn again") from None
    if end > len(data):
        raise OSError(f"{path} has {len(data)} of the {end} bytes of its headers. Install deform-attn again")


def _elf(data: bytes, machine: int | None) -> Iterator[int]:
    """Yield where each part of an ELF file ends."""
    _expect(data[:4] == b"\x7fELF"[: len(data)], "is no ELF file")
    bits, order = struct.unpack_from("2B", data, 4)
    _expect(bits == 2, "is not for 64 bits")
    _expect(order == (1 if sys.byteorder == "little" else 2), "has another byte order than this machine")
    kind, processor = struct.unpack_from("=2H", data, 16)
    segments, sections = struct.unpack_from("=2Q", data, 32)
    segment_size, segment_count, section_size, section_count = struct.unpack_from("=4H", data, 54)
    _expect(kind == 3, "is no shared library")
    _expect(machine in (None, processor), f"is for another processor (ELF machine {processor}, not {machine})")
    yield segments + segment_size * segment_count
    yield sections + section_size * section_count
    for i in range(segment_count):
        offset, _, _, size = struct.unpack_from("=4Q", data, segments + i * segment_size + 8)
        yield offset + size


def _mach_o(data: bytes, machine: int | None) -> Iterator[int]:
    """Yield where each part of a Mach-O file ends, or of this machine's slice of a universal one."""
    start = 0
    if data[:4] == b"\xca\xfe\xba\xbe":
        (count,) = struct.unpack_from(">I", data, 4)
        slices = [struct.unpack_from(">5I", data, 8 + 20 * i) for i in range(count)]
        _expect(any(entry[0] == machine for entry in slices), f"has no slice for this processor ({machine})")
        start = next(entry[2] for entry in slices if entry[0] == machine)
        yield from (offset + size for _, _, offset, size, _ in slices)
    _expect(data[start : start + 4] == b"\xcf\xfa\xed\xfe"[: len(data) - start], "is no 64-bit Mach-O file")
    processor, _, kind, commands, size = struct.unpack_from("<5I", data, start + 4)
    _expect(machine in (None, processor), f"is for another processor (Mach-O type {processor}, not {machine})")
    _expect(kind in (6, 8), "is no shared library")
    at = start + 32
    yield at + size
    for _ in range(commands):
        command, length = struct.unpack_from("<2I", data, at)
        _expect(length >= 8, "has a broken table of load commands")
        if command == _LC_SEGMENT_64:
            yield start + sum(struct.unpack_from("<2Q", data, at + 40))
        at += length


def _pe(data: bytes, machine: int | None) -> Iterator[int]:
    """Yield where each part of a PE file ends."""
    _expect(data[:2] == b"MZ"[: len(data)], "is no PE file")
    (header,) = struct.unpack_from("<I", data, 60)
    signature, processor, sections = struct.unpack_from("<4s2H", data, header)
    optional_size, characteristics = struct.unpack_from("<2H", data, header + 20)
    _expect(signature == b"PE\0\0", "is no PE file")
    _expect(machine in (None, processor), f"is for another processor (PE machine {processor}, not {machine})")
    _expect(bool(characteristics & 0x2000), "is no shared library")
    table = header + 24 + optional_size
    yield table + 40 * sections
    for i in range(sections):
        size, offset = struct.unpack_from("<2I", data, table + 40 * i + 16)
        yield offset + size


def _expect(holds: bool, wrong: str) -> None:
    if not holds:
        raise ValueError(wrong)
