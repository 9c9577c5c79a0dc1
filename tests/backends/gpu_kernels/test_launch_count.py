"""The count of launches: those of workers are added, and a session of too many fails."""

from types import SimpleNamespace

import pytest
from launch_count import MOST_LAUNCHES, launched, pytest_sessionfinish, pytest_testnodedown


@pytest.mark.parametrize(("launches", "status"), [(MOST_LAUNCHES, 0), (MOST_LAUNCHES + 1, 1)])
def test_a_session_of_too_many_launches_on_all_workers_fails(launches, status, monkeypatch):
    monkeypatch.setitem(launched, "launches", 0)
    pytest_testnodedown(SimpleNamespace(workeroutput={"launches": launches - 5}))
    pytest_testnodedown(SimpleNamespace(workeroutput={"launches": 5}))
    pytest_testnodedown(SimpleNamespace())  # a worker that died before it said
    session = SimpleNamespace(config=SimpleNamespace(), exitstatus=0)
    pytest_sessionfinish(session)
    assert session.exitstatus == status


def test_a_worker_hands_its_launches_on_and_fails_nothing_itself(monkeypatch):
    monkeypatch.setitem(launched, "launches", MOST_LAUNCHES + 1)
    session = SimpleNamespace(config=SimpleNamespace(workeroutput={}), exitstatus=0)
    pytest_sessionfinish(session)
    assert (session.config.workeroutput, session.exitstatus) == ({"launches": MOST_LAUNCHES + 1}, 0)
