"""The wheel: its tags, what is in it, that two builds have the same bytes, and that it runs where nothing else is."""

import os
import tempfile
import zipfile
from pathlib import Path

from packaging.utils import parse_wheel_filename
from release import ROOT, TOOLS, alone, put, run

INSTALLED = Path(__file__).parent / "installed.py"


def test_it_serves_every_python_on_a_linux_of_a_stated_age(wheel):
    _, _, _, tags = parse_wheel_filename(wheel.name)
    assert {(tag.interpreter, tag.abi) for tag in tags} == {("py3", "none")}
    assert all(tag.platform.startswith("manylinux_") for tag in tags)
    shown = run(TOOLS / "auditwheel", "show", wheel)
    assert any(tag.platform in shown for tag in tags)


def test_it_has_the_package_the_kernels_and_the_licence_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    package = ROOT / "src" / "deform_attn"
    sources = {
        f"deform_attn/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__" and not path.name.startswith("_native.")
    }
    about = {name for name in files if ".dist-info/" in name}
    assert files - about == sources | {"deform_attn/_native.so"}
    assert {name.partition("/")[2] for name in about} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_no_file_names_a_folder_of_the_machine_that_built_it(wheel):
    places = {str(ROOT), str(Path.home()), tempfile.gettempdir(), "/usr/", "/home/"}
    with zipfile.ZipFile(wheel) as archive:
        found = {
            name: [place for place in places if f"{place.rstrip('/')}/".encode() in archive.read(name)]
            for name in archive.namelist()
            if not name.endswith(".py")
        }
    assert {name: which for name, which in found.items() if which} == {}
    assert any(name.endswith(".so") for name in found)


def test_two_builds_have_the_same_bytes(wheel, sdist, tmp_path):
    run("make", "wheel", f"DIST={tmp_path / 'again'}", cwd=ROOT, umask=0o077)
    for path in (sdist, wheel):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_it_runs_the_op_its_operator_and_the_detector_in_an_empty_environment_without_a_compiler(wheel, environment):
    path = put(wheel, environment)
    run(path / "python", "-m", "pip", "check", env=alone(path))
    said = run(path / "python", "-I", INSTALLED, "native", "operator", "detector", env=alone(path), cwd=os.sep)
    assert said.count(" works\n") == 3
    assert "deform-attn" in run(path / "deform-attn", "info", env=alone(path))
