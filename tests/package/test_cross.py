"""The kernels compiled and linked for other systems, with clang: what each library exports and needs.

None of them runs here. What no compiler here can be is Visual C++, which CMakeLists.txt refuses.
"""

import importlib.util
import platform
import re
import shutil
import sys

import lief
import pytest
from release import ROOT, TOOLS, run

# The system and processor as CMake calls them, and as clang calls them together; then what Python calls them.
TARGETS = {
    "linux-aarch64": ("Linux", "aarch64", "aarch64-linux-gnu.2.28", "linux", "aarch64"),
    "macos-arm64": ("Darwin", "arm64", "aarch64-macos.11.0", "darwin", "arm64"),
    "windows-x86-64": ("Windows", "AMD64", "x86_64-windows-gnu", "win32", "AMD64"),
}

# `zig cc`, not `zig c++`: the library needs nothing of C++'s library, which zig would first build for the target. The
# levels of x86-64 have other names in zig.
CLANG = """#!/bin/sh
for argument; do
    shift
    set -- "$@" "$(echo "$argument" | sed 's/^-march=x86-64-/-march=x86_64_/')"
done
exec {python} -m ziglang cc -target {target} "$@"
"""


def library_file():
    """Return the module that judges a library's file, without the rest of the package, which needs torch."""
    path = ROOT / "src" / "deform_attn" / "backends" / "native" / "library_file.py"
    spec = importlib.util.spec_from_file_location("library_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interface():
    """Return the names of the functions that the headers declare."""
    text = "".join(path.read_text() for path in sorted((ROOT / "native" / "include").glob("*.h")))
    return set(re.findall(r"^DEFORM_ATTN_API [^;(]*?\b(\w+)\(", text, re.MULTILINE))


@pytest.fixture(scope="module", params=TARGETS)
def built(request, tmp_path_factory):
    """Return a target and the library that is compiled for it."""
    system, processor, target, *_ = TARGETS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    compiler = folder / "clang"
    compiler.write_text(CLANG.format(python=sys.executable, target=target))
    compiler.chmod(0o755)
    settings = {
        "CMAKE_SYSTEM_NAME": system,
        "CMAKE_SYSTEM_PROCESSOR": processor,
        "CMAKE_CXX_COMPILER": compiler,
        "CMAKE_MAKE_PROGRAM": TOOLS / "ninja",
        "CMAKE_INSTALL_NAME_TOOL": shutil.which("true"),  # of Apple's tools; CMake asks for it, and nothing is renamed
        "CMAKE_CXX_FLAGS": "-Werror -Wno-unused-command-line-argument -O2",
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "CMAKE_MODULE_LINKER_FLAGS": "-O2",  # as above: zig builds the system's start files for each level apart
        "CMAKE_SHARED_LINKER_FLAGS": "-O2",
        # What is linked and exported does not depend on it, and -O3 takes minutes.
        "CMAKE_CXX_FLAGS_RELEASE": "-O0 -fno-sanitize=all -fno-stack-protector",
    }
    defined = [f"-D{name}={value}" for name, value in settings.items()]
    run(TOOLS / "cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, *defined)
    run(TOOLS / "cmake", "--build", folder)
    run(TOOLS / "cmake", "--install", folder, "--prefix", folder / "root")
    (library,) = (folder / "root" / "deform_attn").iterdir()
    return request.param, library


def test_python_finds_the_library_under_its_name(built):
    target, library = built
    assert library.name == ("_native.pyd" if target == "windows-x86-64" else "_native.so")


def test_it_exports_the_interface_and_nothing_else(built):
    _, library = built
    binary = lief.parse(library)  # kept, since what it gives out is part of it
    names = {function.name.lstrip("_") for function in binary.exported_functions}
    assert len(interface()) > 9
    assert interface() - names == set()
    # What a linker adds to each library.
    assert names - interface() <= {"init", "fini", "mh_dylib_header", "dso_handle"}


def given_out(file):
    """Return the names that an object file gives out to the linker, which may merge the weak ones of several files."""
    binary = lief.parse(file)
    if isinstance(binary, lief.COFF.Binary):
        external = lief.COFF.Symbol.STORAGE_CLASS.EXTERNAL
        return {each.name for each in binary.symbols if each.storage_class == external and each.section_idx > 0}
    if isinstance(binary, lief.MachO.Binary):
        external, kind, in_section = 0x01, 0x0E, 0x0E  # bits of a symbol's type (mach-o/nlist.h)
        return {
            each.name.removeprefix("_")
            for each in binary.symbols
            if each.raw_type & external and each.raw_type & kind == in_section
        }
    local = lief.ELF.Symbol.BINDING.LOCAL
    return {each.name for each in binary.symbols if each.binding != local and each.shndx > 0}


# A function that two of them gave out would be kept once, perhaps the modern copy, which an old processor cannot run.
# Unlike the library, these files keep that it could be merged; and nothing is inlined away here.
def test_the_kernels_of_an_instruction_set_give_out_their_table_and_nothing_else(built):
    target, library = built
    files = sorted((library.parents[2] / "CMakeFiles").glob("kernels-*.dir/native/kernels/kernels.cpp.o*"))
    names = [file.parents[2].name.removeprefix("kernels-").removesuffix(".dir") for file in files]
    assert names == (["baseline", "x86-64-v2", "x86-64-v3"] if target == "windows-x86-64" else ["baseline"])
    tables = [{f"deform_attn_kernels_{name.replace('-', '_')}"} for name in names]
    assert [given_out(file) for file in files] == tables


def test_it_needs_the_systems_own_libraries_alone(built):
    target, library = built
    binary = lief.parse(library)
    needed = {getattr(each, "name", each).lower() for each in binary.libraries}
    known = {
        "linux-aarch64": r"lib(c|m|dl)\.so\.\d|ld-linux-aarch64\.so\.1",
        "macos-arm64": r"/usr/lib/libsystem\.b\.dylib|@rpath/_native\.so",  # its own name
        "windows-x86-64": r"kernel32\.dll|ntdll\.dll|api-ms-win-crt-.*\.dll",
    }
    assert needed
    assert {name for name in needed if not re.fullmatch(known[target], name)} == set()


def test_the_package_judges_its_file_as_one_for_that_machine(built, monkeypatch, tmp_path):
    target, library = built
    module = library_file()
    monkeypatch.setattr(sys, "platform", TARGETS[target][3])
    monkeypatch.setattr(platform, "machine", lambda: TARGETS[target][4])
    module.judge(str(library))
    cut = tmp_path / "cut"
    cut.write_bytes(library.read_bytes()[: library.stat().st_size * 3 // 4])
    with pytest.raises(OSError, match="Install deform-attn again"):
        module.judge(str(cut))
