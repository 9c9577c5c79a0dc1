"""Calls of the GPU kernels in Triton's interpreter, every buffer between bands of NaN, and every launch counted."""

import os

import pytest
import torch

from deform_attn import deformable_attention, multi_scale_deformable_attention
from deform_attn.backends.triton.launch import Launch

BAND = 64  # numbers

INTERPRETED = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1: make test-gpu-kernels"
    ),
    # By NumPy, in which the interpreter computes: NaN and infinity are among the tests' numbers.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
ENTRY_POINTS = {"classic": multi_scale_deformable_attention, "fused": deformable_attention}


class Bands:
    """Buffers that lie between bands of NaN, or of -1 for integers; one that is written into is seen."""

    def __init__(self):
        self._held = []

    def _buffer(self, shape, dtype, offset=BAND):
        numel = torch.Size(shape).numel()
        bad = float("nan") if dtype.is_floating_point else -1 if dtype != torch.bool else True
        whole = torch.full((numel + 2 * BAND,), bad, dtype=dtype)
        self._held.append((whole, offset, numel))
        return whole[offset : offset + numel].view(shape)

    def around(self, tensor):
        """Return a tensor with the same numbers between bands."""
        if tensor is None or not tensor.numel():
            return tensor
        return self._buffer(tensor.shape, tensor.dtype).copy_(tensor)

    def check(self):
        """Fail where something was written outside of a buffer."""
        assert self._held
        for whole, offset, numel in self._held:
            outside = torch.cat([whole[:offset], whole[offset + numel :]])
            bad = outside.isnan() if whole.dtype.is_floating_point else (outside == -1) | (outside == True)  # noqa: E712
            assert bad.all(), f"{(~bad).sum()} numbers were written outside of a buffer of {numel}"

    def install(self, monkeypatch):
        """Let what the backend allocates lie between bands, too."""

        untouched = torch.Tensor.new_empty

        def new_empty(tensor, *shape, dtype=None, **others):
            if others:  # Triton's own
                return untouched(tensor, *shape, dtype=dtype, **others)
            shape = shape if all(isinstance(size, int) for size in shape) else shape[0]
            return self._buffer(shape, dtype or tensor.dtype)

        def new_zeros(tensor, *shape, dtype=None):
            return new_empty(tensor, *shape, dtype=dtype).zero_()

        monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
        monkeypatch.setattr(torch.Tensor, "new_zeros", new_zeros)


@pytest.fixture
def bands(monkeypatch):
    """Return bands, installed, which are checked at the end of the test."""
    bands = Bands()
    with monkeypatch.context() as patch:
        bands.install(patch)
        yield bands
    bands.check()


@pytest.fixture
def launches(monkeypatch):
    """Return a list that grows by the name of each launch of a kernel for forward and backward."""
    seen = []
    launch = Launch._launch

    def counted(self, backward, *args):
        seen.append("backward" if backward else "forward")
        launch(self, backward, *args)

    monkeypatch.setattr(Launch, "_launch", counted)
    return seen
