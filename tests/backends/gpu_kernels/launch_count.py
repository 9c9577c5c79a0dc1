"""How many launches of kernels a session takes in the interpreter, on all workers of xdist; too many fail it."""

import os

import pytest

MOST_LAUNCHES = 600  # a launch takes most of a second there, and the list must stay one that is run
launched = {"launches": 0}


@pytest.fixture(autouse=True)
def every_launch_counted(monkeypatch):
    """Count the launches of all kernels, in tests that run in the interpreter."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        interpreter = pytest.importorskip("triton.runtime.interpreter")
        run = interpreter.GridExecutor.__call__

        def counted(self, *args, **kwargs):
            launched["launches"] += 1
            return run(self, *args, **kwargs)

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add the launches of a worker of pytest-xdist."""
    launched["launches"] += getattr(node, "workeroutput", {}).get("launches", 0)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fail a session, of whose tests each may have passed, that took too many launches."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["launches"] = launched["launches"]
    elif launched["launches"] > MOST_LAUNCHES:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    """Say how many launches there were."""
    if count := launched["launches"]:
        terminalreporter.write_line(f"{count} launches of kernels in Triton's interpreter, at most {MOST_LAUNCHES}")
