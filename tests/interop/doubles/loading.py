"""Doubles with the extension that a test chooses, each made anew, as a repository imports its own."""

import importlib
import sys
from types import ModuleType

from doubles import calls, extension

EXTENSIONS = ("MultiScaleDeformableAttention", "groundingdino._C", "detrex._C", "mmcv._ext")


def oracle(name):
    """Return the op in torch, in the form in which the extension of this name has it."""
    return extension.Filling if name == "mmcv._ext" else extension


def uncompiled(name):
    """Return an extension of this name that was built without what the device needs: every call raises."""
    module = ModuleType(name)

    def refuse(*arguments, **options):
        raise RuntimeError("Not implemented on the CPU")

    module.ms_deform_attn_forward = module.ms_deform_attn_backward = refuse
    return module


def load(monkeypatch, double, extension_of=oracle):
    """Return a double's module, which gets `extension_of(name)` for each extension; if None, what Python finds."""
    for name in EXTENSIONS:
        parent, _, last = name.rpartition(".")
        if parent:
            package = ModuleType(parent)
            package.__path__ = []
            monkeypatch.setitem(sys.modules, parent, package)
        if extension_of is None:
            monkeypatch.delitem(sys.modules, name, raising=False)
            continue
        monkeypatch.setitem(sys.modules, name, extension_of(name))
        if parent:
            setattr(package, last, extension_of(name))
    monkeypatch.delitem(sys.modules, f"doubles.{double}", raising=False)
    return importlib.import_module(f"doubles.{double}")


def redrawn(monkeypatch, family, call, extension_of=oracle):
    """Return the double of a family as it was built for this recorded call, its parameters redrawn, in eval mode."""
    double, name, _ = calls.FAMILIES[family]
    module = getattr(load(monkeypatch, double, extension_of), name)(**call.options)
    return calls.redraw(module).eval()
