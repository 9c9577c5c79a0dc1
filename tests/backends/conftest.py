"""Fixtures: nothing remembered at first, and calls that have become short."""

import pytest
import torch

from deform_attn.backends import remembered


@pytest.fixture
def cold():
    """Forget all calls, before a test and after it."""
    remembered._calls.clear()
    yield
    remembered._calls.clear()


@pytest.fixture
def short(cold, monkeypatch):
    """Return a list that grows with each call that takes the short way."""
    calls = []
    original = remembered._Call.__call__

    def note(call, *args, **kwargs):
        calls.append(call)
        return original(call, *args, **kwargs)

    monkeypatch.setattr(remembered._Call, "__call__", note)
    return calls


@pytest.fixture
def warm(short):
    """Return a function that makes a call until it is short, without grad and with it."""

    def warmed(kind):
        with torch.no_grad():
            kind()
            before = len(short)
            kind()
            assert len(short) == before + 1, "the second call was not short"
        return kind

    return warmed
