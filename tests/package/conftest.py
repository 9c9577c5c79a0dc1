"""These tests need what a release is made of: only `make test-package`, which makes it, collects them."""

import os
import sys

import pytest
from release import ROOT, alone, run

collect_ignore_glob = [] if os.environ.get("DEFORM_ATTN_PACKAGE") else ["test_*.py"]


@pytest.fixture(scope="session")
def sdist():
    """Return the path of the only sdist in dist/."""
    (path,) = (ROOT / "dist").glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel():
    """Return the path of the only wheel in dist/."""
    (path,) = (ROOT / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory):
    """Return the folder of an environment that has a wheel of the package, and what the detector and ONNX need."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    install = (folder / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--no-compile")
    wanted = ("--constraint", ROOT / "constraints.txt", f"{wheel}[detr,onnx]")
    run(*install, *wanted, env=alone(folder / "bin"))
    return folder
