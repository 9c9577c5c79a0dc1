"""The documentation site, built once for all of its tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Return the folder of the site, built as `make docs` builds it: a warning is an error."""
    pytest.importorskip("sphinx")
    out, trees = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("trees")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(trees), str(PAGES), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    built = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out
