"""Child processes that begin with torch imported: each is forked from one that has it, in milliseconds, not seconds."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Reads a line for each child: its code, arguments, environment, folder and the files for what it prints. Answers with
# its exit status.
PARENT = r"""
import json, os, sys, traceback
import torch

def live(wish):
    for number, name in enumerate((os.devnull, wish["out"], wish["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, closefd=False) for n, mode in enumerate("rww"))
    os.environ.clear()
    os.environ.update(wish["environment"])
    os.chdir(wish["folder"])
    sys.argv, status = ["-c", *wish["arguments"]], 1
    try:
        exec(compile(wish["code"], "<child>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        live(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What a child has left: its exit status, negative if a signal ended it, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Children:
    """Runs pieces of Python, each in a process of its own, where nothing but torch has been imported."""

    def __init__(self):
        self._path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._parent = None

    def run(self, code, *arguments, folder=".", **environment):
        """Run `code` in a child with these arguments; a variable of the environment that is None is taken away."""
        environment = {**os.environ, **self._path, **environment}
        environment = {name: value for name, value in environment.items() if value is not None}
        if not hasattr(os, "fork"):
            command = [sys.executable, "-c", code, *arguments]
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
            return Done(done.returncode, done.stdout, done.stderr)
        if self._parent is None:
            command = [sys.executable, "-c", PARENT]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._parent = subprocess.Popen(command, env={**os.environ, **self._path}, **pipes)
        with tempfile.TemporaryDirectory() as place:
            out, err = Path(place, "out"), Path(place, "err")
            out.touch()
            err.touch()
            wish = {"code": code, "arguments": arguments, "environment": environment, "folder": os.path.abspath(folder)}
            print(json.dumps({**wish, "out": str(out), "err": str(err)}), file=self._parent.stdin, flush=True)
            answer = self._parent.stdout.readline()
            assert answer, "the parent of all children has ended"
            return Done(int(answer), out.read_text(), err.read_text())

    def close(self):
        """End the process that children are forked from."""
        if self._parent is not None:
            self._parent.stdin.close()
            self._parent.wait()
            self._parent.stdout.close()
