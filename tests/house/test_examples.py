"""The examples in docstrings: every public callable has one, and all of them run."""

import doctest
import importlib
import pkgutil

import pytest

import deform_attn

# _native is the library of CPU kernels, which Python finds but does not import; the GPU kernels need Triton.
KERNELS = "deform_attn.backends.triton.kernels."
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(deform_attn.__path__, "deform_attn.")
    if m.name != "deform_attn._native" and not m.name.startswith(KERNELS)
)
OF_EXTRAS = {"interop", "export", "detr", "explore", "cli", "__main__"}


def failing(names):
    """Return how many examples fail in each of the modules where some do; what they printed is in pytest's report."""
    failed = {name: doctest.testmod(importlib.import_module(name)).failed for name in names}
    return {name: count for name, count in failed.items() if count}


def test_the_examples_of_the_core_run():
    names = [name for name in MODULES if name.split(".")[1] not in OF_EXTRAS]
    assert len(names) > 20
    assert failing(names) == {}


def test_the_examples_of_the_rooms_that_need_an_extra_run():
    for package in ("numpy", "PIL", "matplotlib", "transformers", "onnxruntime"):
        pytest.importorskip(package)
    names = [name for name in MODULES if name.split(".")[1] in OF_EXTRAS]
    assert len(names) > 80
    assert failing(names) == {}


def test_an_example_that_fails_is_seen(tmp_path, monkeypatch):
    (tmp_path / "module_with_a_wrong_example.py").write_text('"""Add.\n\n>>> 1 + 1\n3\n"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert failing(["module_with_a_wrong_example"]) == {"module_with_a_wrong_example": 1}


def test_the_public_callables_have_examples():
    finder = doctest.DocTestFinder()
    for name in deform_attn.__all__:
        examples = [test for test in finder.find(getattr(deform_attn, name), name) if test.examples]
        assert examples, f"{name} has no example"
