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
        "CMAKE_CXX_FLAGS_RELEASE": "-O0 -fno-sanitize=all",
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
