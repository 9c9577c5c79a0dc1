"""The state of the sources that a result is of."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEASURED = ("src", "native")


def commit(folders: Sequence[str] = MEASURED) -> str:
    """Return the last commit that touched what is measured."""
    command = ["git", "log", "-1", "--format=%h", "--", *folders]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"  # an unpacked archive
