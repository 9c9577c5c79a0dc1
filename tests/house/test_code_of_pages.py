"""The code of the README and the docs: every block of Python runs."""

import ast
import re
from pathlib import Path

import pytest
from pages import pages_of

ROOT = Path(__file__).parents[2]
SLOW = {"published_weights.md", "explore.md"}  # their code builds models in the sizes that are published
SLOW |= {"onnx.md", "guides/deploy.md"}  # theirs writes a file for each form
# What our own rooms import when they are used.
OF_ROOMS = {
    "detr": ("transformers", "PIL", "matplotlib"),
    "explore": ("PIL", "matplotlib"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
}


def blocks():
    """Yield each block of Python of a page, as a parameter of a test."""
    for page in pages_of(ROOT):
        for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
            name = str(page.relative_to(ROOT).as_posix()).removeprefix("docs/")
            marks = [pytest.mark.slow] if name in SLOW else []
            yield pytest.param(code, id=f"{name}-{i}", marks=marks)


def packages(code):
    """Return the packages that a piece of code imports, those of our rooms included."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    ours = {name.split(".")[1] for name in names if name.startswith("deform_attn.")}
    return {name.split(".")[0] for name in names} | {name for room in ours for name in OF_ROOMS.get(room, ())}


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")  # of docs/torchscript.md
@pytest.mark.parametrize("code", list(blocks()))
def test_the_python_code_of_the_pages_runs(code, tmp_path, monkeypatch):
    for package in sorted(packages(code)):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # for what it writes
    exec(compile(code, "page", "exec"), {})


def test_what_code_imports_is_seen():
    assert packages("import torch.nn\nfrom deform_attn.explore import Scene\n") == {
        *("torch", "deform_attn", "PIL", "matplotlib"),
    }
