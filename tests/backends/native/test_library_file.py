"""The file of the CPU kernels' library: one that is cut, or not for this machine, is a reason and never a signal."""

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from deform_attn.backends.native import library_file, registration

pytestmark = pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built")
needs_elf = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the library is no ELF file here")

# Loads files as the package does, in one process, which a signal would end.
LOAD = """
import json, sys
from deform_attn.backends.native import library as native_library
for path in sys.argv[1:]:
    native_library.importlib.util.find_spec = lambda name: type("Spec", (), {"origin": path})
    library, reasons = native_library.load()
    print(json.dumps("loaded" if library else reasons[0]))
"""


def built():
    return Path(importlib.util.find_spec("deform_attn._native").origin)


@pytest.fixture
def loaded(children):
    """Return a function that gives what comes of loading each file: "loaded", or the reason against it."""

    def load(*paths):
        done = children.run(LOAD, *map(str, paths))
        assert done.returncode == 0, (done.returncode, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return load


@needs_elf
def test_a_library_cut_at_any_length_is_a_reason_and_no_signal(tmp_path, loaded):
    data = built().read_bytes()
    lengths = [0, 1, 3, 4, 15, 63, 64, 100, 600, 4096, len(data) // 2, 810008, len(data) - 4096, len(data) - 1]
    lengths += range(5000, len(data), len(data) // 40)
    paths = [tmp_path / f"{length}.so" for length in lengths if length < len(data)]
    for path in paths:
        path.write_bytes(data[: int(path.stem)])
    for path, reason in zip(paths, loaded(*paths), strict=True):
        assert "do not load" in reason, path
        assert str(path) in reason
        assert "Install deform-attn again" in reason
        assert path.stem in reason  # how long it is


@needs_elf
def test_a_library_for_another_machine_is_a_reason(tmp_path, loaded):
    changes = {
        "processor": (18, b"\x28\x00"),
        "64 bits": (4, b"\x01"),
        "byte order": (5, b"\x02"),
        "shared": (16, b"\x02"),
    }
    paths = []
    for name, (at, new) in changes.items():
        data = bytearray(built().read_bytes())
        data[at : at + len(new)] = new
        paths.append(tmp_path / f"{name}.so")
        paths[-1].write_bytes(data)
    for name, path, reason in zip(changes, paths, loaded(*paths), strict=True):
        assert str(path) in reason
        assert name in reason


def test_a_directory_and_a_missing_file_are_reasons(tmp_path, loaded):
    directory, missing = loaded(tmp_path, tmp_path / "missing.so")
    assert str(tmp_path) in directory
    assert "missing.so" in missing


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_library_that_may_not_be_read_is_a_reason(tmp_path, loaded):
    path = tmp_path / "_native.so"
    shutil.copy(built(), path)
    path.chmod(0)
    (reason,) = loaded(path)
    assert "Permission denied" in reason


@needs_elf
def test_a_copy_loads_and_so_does_a_stripped_one(tmp_path, loaded):
    if shutil.which("strip") is None:
        pytest.skip("strip is not installed")
    copy, stripped = tmp_path / "copy.so", tmp_path / "stripped.so"
    for path in (copy, stripped):
        shutil.copy(built(), path)
    subprocess.run(["strip", "--remove-section", ".comment", str(stripped)], check=True)
    assert stripped.read_bytes() != copy.read_bytes()
    assert loaded(copy, stripped) == ["loaded", "loaded"]


def mach_o(processor=0x0100000C, kind=6):
    """Return a Mach-O library of one segment, 100 bytes from 200 on."""
    segment = struct.pack("<2I16s4Q4I", 0x19, 72, b"__TEXT", 0, 100, 200, 100, 5, 5, 0, 0)
    return (struct.pack("<8I", 0xFEEDFACF, processor, 0, kind, 1, len(segment), 0, 0) + segment).ljust(300, b"\0")


def universal(*slices):
    """Return a universal Mach-O file of (processor, library)."""
    head, body = struct.pack(">2I", 0xCAFEBABE, len(slices)), b""
    for processor, library in slices:
        head += struct.pack(">5I", processor, 0, 4096 + len(body), len(library), 12)
        body += library
    return head.ljust(4096, b"\0") + body


def pe(machine=0x8664, characteristics=0x2022):
    """Return a PE library of one section, 100 bytes from 400 on."""
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 128)
    head = (
        head.ljust(128, b"\0") + struct.pack("<4s2H3I2H", b"PE", machine, 1, 0, 0, 0, 16, characteristics) + bytes(16)
    )
    return (head + struct.pack("<8s6I2HI", b".text", 100, 0, 100, 400, 0, 0, 0, 0, 0)).ljust(500, b"\0")


FOREIGN = {
    "Mach-O": ("darwin", "arm64", mach_o(), mach_o(processor=0x01000007), mach_o(kind=2)),
    "universal": (
        "darwin",
        "x86_64",
        universal((0x0100000C, mach_o()), (0x01000007, mach_o(0x01000007))),
        universal((0x0100000C, mach_o())),
        universal((0x01000007, mach_o(0x01000007, kind=2))),
    ),
    "PE": ("win32", "AMD64", pe(), pe(machine=0xAA64), pe(characteristics=0x22)),
}


@pytest.mark.parametrize("form", FOREIGN)
def test_the_formats_of_other_systems_are_judged_alike(form, monkeypatch, tmp_path):
    system, machine, whole, other_processor, no_library = FOREIGN[form]
    monkeypatch.setattr(library_file.sys, "platform", system)
    monkeypatch.setattr(library_file.platform, "machine", lambda: machine)
    path = tmp_path / "library"
    path.write_bytes(whole)
    library_file.judge(str(path))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(OSError, match="Install deform-attn again"):
            library_file.judge(str(path))
    for data, reason in (
        (other_processor, "processor"),
        (no_library, "no shared library"),
        (b"#!/bin/sh\n" * 99, "is no"),
    ):
        path.write_bytes(data)
        with pytest.raises(OSError, match=reason):
            library_file.judge(str(path))
