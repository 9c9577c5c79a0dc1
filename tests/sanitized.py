"""A plugin of pytest for `make sanitize`: the tests run with the library that was built under the sanitizers.

It takes the place of the package's own. Python has no sanitizer in it, so that of the library must be loaded first
(LD_PRELOAD): then every array that numpy, torch or ONNX Runtime allocate is one whose bounds it knows.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import spec_from_file_location
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "build" / "sanitize" / "_native.so"


class Finder(MetaPathFinder):
    """Finds this library where the package looks for its own."""

    def find_spec(self, name, path=None, target=None):
        return spec_from_file_location(name, LIBRARY) if name == "deform_attn._native" else None


sys.meta_path.insert(0, Finder())


def pytest_collection_finish():
    from deform_attn.backends.native import registration

    assert Path(registration.loaded().path) == LIBRARY
    assert "libasan" in os.environ["LD_PRELOAD"]
    operators = sys.modules.get("operator_files")
    if operators is not None:
        operators.ARENA = False
