"""The runner: `python -m deform_attn.stand_ins SCRIPT [ARGS]` runs a script with the stand-ins.

It starts Python once more in this process, with the folder at_start/ on PYTHONPATH. So the script is `__main__` as it
always is, and every Python that inherits the environment has the stand-ins: those of multiprocessing, of subprocess, of
torchrun.
"""

import os
import subprocess
import sys
from pathlib import Path

from deform_attn.stand_ins.finder import NAMES

USAGE = "usage: python -m deform_attn.stand_ins SCRIPT [ARGS], or -m MODULE [ARGS], or -c CODE [ARGS]"
HELP = f"""Runs Python code that imports a compiled extension which is not installed. A stand-in computes the same.
There is one for each of {", ".join(NAMES)}. An installed extension comes first."""
FOLDER = str(Path(__file__).with_name("at_start"))


def command() -> list[str]:
    """Return the command line without this module: the options of Python, then what it is to run."""
    args = sys.argv[1:]
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(args)]
    if not options[-1].startswith("-"):  # the module's name, in a word of its own
        options.pop()
    flags = options.pop().partition("m")[0]  # "-m", or the last of several letters: "-um"
    return [sys.executable, *options, *([flags] if flags != "-" else []), *args]


def environment() -> dict[str, str]:
    """Return the environment in which Python finds the stand-ins at its start."""
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{FOLDER}{os.pathsep}{others}" if others else FOLDER}


def main() -> None:
    """Run what the command line says."""
    args = sys.argv[1:]
    if args in (["-h"], ["--help"]):
        sys.stdout.write(f"{USAGE}\n\n{HELP}\n")
        return
    if not args:
        sys.exit(USAGE)
    if sys.flags.ignore_environment or sys.flags.no_site:
        sys.exit("python: expected it without -E, -I and -S, which keep it from reading PYTHONPATH. Leave them out.")
    if os.name == "nt":  # where the new process would not be this one, and nobody would wait for it
        sys.exit(subprocess.call(command(), env=environment()))
    os.execve(sys.executable, command(), environment())


if __name__ == "__main__":
    main()
