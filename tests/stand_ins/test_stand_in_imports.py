"""Which module is imported under the name of an extension, and what it says; each in a Python of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import deform_attn.stand_ins
from deform_attn.stand_ins.finder import NAMES

PACKAGE = Path(deform_attn.stand_ins.__file__).parent
AT_START = PACKAGE / "at_start"

CLASSIC = """
import torch
sizes, starts = torch.tensor([[3, 2], [2, 4]]), torch.tensor([0, 6])
call = torch.rand(1, 14, 2, 4), sizes, starts, torch.rand(1, 3, 2, 2, 5, 2), torch.rand(1, 3, 2, 2, 5), 64
"""


def python(*args, folder, path="", **variables):
    """Run a Python in a folder whose modules it can import."""
    paths = [part for part in (path, str(folder), os.environ.get("PYTHONPATH")) if part]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
    return subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True)


def lines(*args, **options):
    """Return what a Python that comes to a good end has printed."""
    result = python(*args, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def projects(tmp_path):
    """Return a folder with packages as other projects have them, without their extensions."""
    for name in ("groundingdino", "detrex"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "mmcv" / "ops").mkdir(parents=True)
    (tmp_path / "mmcv" / "__init__.py").write_text("")
    wanted = ["nms", "roi_align_forward", "ms_deform_attn_forward", "ms_deform_attn_backward"]
    (tmp_path / "mmcv" / "ops" / "__init__.py").write_text(
        "import importlib\next = importlib.import_module('mmcv._ext')\n"
        f"assert all(hasattr(ext, name) for name in {wanted})\n"
    )
    return tmp_path


STAND_INS = (
    CLASSIC
    + """
import importlib, sys, warnings
import deform_attn
finders = list(sys.meta_path)
try:
    import MultiScaleDeformableAttention
except ModuleNotFoundError as error:
    print(error.name)
import deform_attn.stand_ins
from deform_attn.stand_ins.finder import NAMES, Finder, install
install()
importlib.reload(deform_attn.stand_ins)
print(sys.meta_path[:-1] == finders, isinstance(sys.meta_path[-1], Finder))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import mmcv.ops
    for name in NAMES * 2:
        extension = importlib.import_module(name)
        assert extension.ms_deform_attn_forward(*call).shape == (1, 3, 8)
        assert len(extension.ms_deform_attn_backward(*call[:5], torch.ones(1, 3, 8), 64)) == 3
for each in seen:
    print(type(each.message).__name__, each.message, each.filename == __file__)
from groundingdino import _C
for extension, op in ((mmcv.ops.ext, "nms"), (_C, "nms"), (mmcv.ops.ext, "__path__"), (mmcv.ops.ext, "_private")):
    try:
        getattr(extension, op)(1, iou=2)
    except (NotImplementedError, AttributeError) as error:
        print(type(error).__name__, error)
import nobody_has_this
"""
)


def test_each_extension_that_is_missing_has_a_stand_in_that_says_so_once(projects):
    script = projects / "script.py"
    script.write_text(STAND_INS)
    result = python(str(script), folder=projects)
    assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'nobody_has_this'"
    found = result.stdout.splitlines()
    assert found[:2] == ["MultiScaleDeformableAttention", "True True"]
    warned = ["mmcv._ext", *(name for name in NAMES if name != "mmcv._ext")]
    text = "no compiled extension of this name is installed; deform_attn stands in for it."
    # mmcv.ops imports its extension itself, through importlib.
    assert [line.rpartition(" ")[0] for line in found[2:6]] == [f"StandInWarning {name}: {text}" for name in warned]
    assert found[6].startswith("NotImplementedError mmcv._ext.nms: expected the compiled extension, got deform_attn's")
    assert found[7].startswith("AttributeError groundingdino._C.nms: expected the compiled extension, got deform_attn")
    assert "ms_deform_attn_forward and ms_deform_attn_backward only" in found[7]
    assert [line.split()[:2] for line in found[8:]] == [
        ["AttributeError", "mmcv._ext.__path__:"],
        ["AttributeError", "mmcv._ext._private:"],
    ]


def test_an_extension_that_is_installed_is_imported_and_a_broken_one_fails_by_itself(projects):
    (projects / "MultiScaleDeformableAttention.py").write_text("installed = True\n")
    (projects / "detrex" / "_C.py").write_text("installed = True\n")
    (projects / "groundingdino" / "_C.py").write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    code = (
        "import MultiScaleDeformableAttention, detrex._C\n"
        "print(MultiScaleDeformableAttention.installed, detrex._C.installed)\n"
        "try:\n    from groundingdino import _C\nexcept ImportError as error:\n    print(error)\n"
    )
    expected = ["True True", "undefined symbol: _ZN3c10"]
    assert lines("-W", "error", "-c", "import deform_attn.stand_ins\n" + code, folder=projects) == expected
    assert lines("-W", "error", "-c", code, folder=projects, path=str(AT_START)) == expected


def test_a_package_that_is_missing_stays_missing(tmp_path):
    code = "try:\n    import mmcv._ext\nexcept ModuleNotFoundError as error:\n    print(error.name)\n"
    assert lines("-c", code, folder=tmp_path, path=str(AT_START)) == ["mmcv"]


def test_a_start_of_python_imports_neither_torch_nor_the_package_and_runs_the_sitecustomize_that_was_hidden(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('hidden', __file__)\n")
    code = (
        "import sys, sitecustomize\nprint(sitecustomize.__file__)\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'deform_attn')])\n"
        "print(type(sys.meta_path[-1]).__name__, any('at_start' in path for path in sys.path))\n"
    )
    hidden = str(tmp_path / "sitecustomize.py")
    assert lines("-c", code, folder=tmp_path, path=str(AT_START)) == [
        f"hidden {hidden}",
        hidden,
        "['deform_attn.stand_ins.finder']",
        "Finder False",
    ]


def test_what_the_start_of_python_has_put_there_the_package_does_not_put_there_again(tmp_path):
    code = (
        "import sys\nbefore = list(sys.meta_path)\nimport MultiScaleDeformableAttention as extension\n"
        "import deform_attn.stand_ins\nfrom deform_attn.stand_ins import finder, ops\n"
        "print(sys.meta_path == before, finder._FINDER is before[-1])\n"
        "print(extension.ms_deform_attn_forward is ops.ms_deform_attn_forward)\n"
    )
    assert lines("-c", code, folder=tmp_path, path=str(AT_START)) == ["True True", "True"]
