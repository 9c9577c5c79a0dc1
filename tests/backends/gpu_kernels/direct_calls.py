"""Calls that are remembered as if the CPU were a GPU, and a list of those that went straight to their launch."""

import pytest
import torch
from interpreted import ENTRY_POINTS

from cases import inputs_of, named
from deform_attn.backends import remembered
from deform_attn.backends.triton import backend, direct, ops, toolchain

FORMS = pytest.mark.parametrize("form", ENTRY_POINTS)
CASE = named("small points")


@pytest.fixture
def gpu(monkeypatch):
    """Let the backend take the CPU for a GPU, whose calls are remembered; return the list of those that were direct."""
    remembered._calls.clear()
    monkeypatch.setitem(backend.KEYS, "cpu", "CPU")
    if toolchain.is_interpreting():
        monkeypatch.setattr(ops, "prepare", lambda inputs: [])  # which compiles
    went = []
    for name in ("forward", "backward"):
        whole = getattr(direct.DirectCall, name)

        def seen(self, *args, whole=whole, name=name):
            found = whole(self, *args)
            went.append((name, found is not None))
            return found

        monkeypatch.setattr(direct.DirectCall, name, seen)
    yield went
    remembered._calls.clear()


def call(form):
    """Return tensors, and the function of them."""
    inputs = inputs_of(CASE, torch.float32)
    tensors = inputs.fused_tensors if form == "fused" else inputs.classic_tensors
    options = inputs.fused_options if form == "fused" else inputs.classic_options

    def op(value, *others, backend="triton"):
        return ENTRY_POINTS[form](value, CASE.spatial_shapes, *others, backend=backend, **options)

    return [tensor.clone() for tensor in tensors], op
