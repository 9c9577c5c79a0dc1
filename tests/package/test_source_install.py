"""Installing from the sdist: where no compiler is, it works without kernels; where a compiler fails, it fails."""

import sys
import zipfile

import pytest
from release import ROOT, alone, attempt, build_tools, put, run

INSTALLED = ROOT / "tests" / "package" / "installed.py"
BUILD = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--verbose")


@pytest.fixture(scope="module")
def pure_wheel(sdist, tmp_path_factory):
    """Return the wheel that comes of the sdist where no compiler is."""
    folder = tmp_path_factory.mktemp("pure")
    said = run(*BUILD, "--wheel-dir", folder, sdist, env=alone(build_tools(folder / "tools")))
    assert "no C++ compiler on the PATH" in said
    (path,) = folder.glob("*.whl")
    return path


def test_without_a_compiler_there_is_a_package_without_kernels_that_works_and_says_so(pure_wheel, environment):
    with zipfile.ZipFile(pure_wheel) as archive:
        assert not [name for name in archive.namelist() if "_native" in name]
    path = put(pure_wheel, environment)
    assert "pure works" in run(path / "python", "-I", INSTALLED, "pure", env=alone(path))


@pytest.mark.parametrize("how", ["named", "found"])
def test_a_compiler_that_fails_fails_the_installation_with_its_own_words(how, sdist, tmp_path):
    tools = build_tools(tmp_path / "tools")
    compiler = tools / ("broken" if how == "named" else "c++")
    compiler.write_text("#!/bin/sh\necho 'the licence of this compiler is over' >&2\nexit 3\n")
    compiler.chmod(0o755)
    environment = alone(tools) | ({"CXX": str(compiler)} if how == "named" else {})
    done = attempt(*BUILD, "--wheel-dir", tmp_path, sdist, env=environment)
    assert done.returncode != 0
    assert "the licence of this compiler is over" in done.stdout
    assert not list(tmp_path.glob("*.whl"))


def test_without_kernels_can_be_asked_for(sdist, tmp_path):
    tools = build_tools(tmp_path / "tools")
    run(*BUILD, "-C", "wheel.cmake=false", "--wheel-dir", tmp_path, sdist, env=alone(tools))
    assert [path.name.endswith("-py3-none-any.whl") for path in tmp_path.glob("*.whl")] == [True]
