"""What the tests of a release share: where its files lie, how a command runs, and a PATH without a compiler."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-package" / "bin"


def run(*command, **options):
    """Run a command, and return what it printed; a failure shows the end of that."""
    done = attempt(*command, **options)
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def attempt(*command, **options):
    """Run a command, and return what came of it, with all that it printed in `stdout`."""
    command = list(map(str, command))
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)


def alone(path):
    """Return an environment with this PATH, in which no compiler and no module of another place is named."""
    named = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "PYTHONPATH")
    return {name: text for name, text in os.environ.items() if name not in named} | {"PATH": str(path)}


def put(wheel, environment):
    """Put the package of this wheel in the place of the one in an environment; return the folder of its programs."""
    programs = environment / "bin"
    run(programs / "python", "-m", "pip", "install", "--no-deps", "--force-reinstall", wheel, env=alone(programs))
    return programs


def build_tools(folder):
    """Make a folder that has what a build of the package runs, but no compiler; return it."""
    folder.mkdir()
    for name in ("cmake", "ninja"):
        (folder / name).symlink_to(TOOLS / name)
    assert not any(shutil.which(name, path=folder) for name in ("c++", "g++", "clang++"))
    return folder
