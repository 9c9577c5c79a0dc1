"""Which versions of torch and transformers pass: `make versions`, by hand, since each gets an environment of its own.

python tests/package/versions.py torch==2.10.* transformers==5.0.*    # these alone, with this Python

Without arguments: all that are wanted, then the newest torch with each other Python on the PATH. Of torch the suites of
the core run, each value of each parameter once; of transformers those of the patched models. The rest is as in
constraints.txt, and the package is the wheel in dist/. An environment has gigabytes, and goes once its suites have
passed; what they printed stays.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".venv-versions"
_LETTER = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""  # as in the name of a free-threaded Python
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}{_LETTER}"
OTHER_PYTHONS = [f"python3.{minor}" for minor in range(11, 16)]
# The oldest that pyproject.toml allows, those that are tested against, and the newest.
WANTED = [
    "torch==2.10.*",
    "torch==2.13.*",
    "torch==2.14.*",
    "torch",
    "transformers==5.0.*",
    "transformers==5.23.*",
    "transformers",
]
SUITES = {
    "torch": [
        "tests/core",
        "tests/backends",
        "tests/torch_ops",
        "--ignore",
        "tests/backends/native",
        "--each-value-once",
    ],
    "transformers": ["tests/interop", "tests/explore/test_transformers_models.py"],
}
# What the suites themselves import.
TOOLS = {"torch": ["pytest", "pytest-xdist"], "transformers": ["pytest", "pytest-xdist", "hypothesis"]}


def constraints(package: str) -> Path:
    """Write constraints.txt without `package` and what comes with it, and return that file."""
    brought = {package} | ({"triton", "sympy", "mpmath"} if package == "torch" else {"huggingface_hub", "tokenizers"})
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    file = PLACE / f"constraints-{package}.txt"
    file.write_text("\n".join(line for line in lines if re.split("[<=]", line)[0] not in brought))
    return file


def try_version(wanted: str) -> tuple[str, bool]:
    """Install one version and run its suites; return what is to be said of it, and whether all passed."""
    package = wanted.partition("=")[0]
    (wheel,) = (ROOT / "dist").glob("*.whl")
    folder = PLACE / f"python{PYTHON}-{wanted.replace('=', '').replace('*', 'x')}"
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints(package)]
    extra = "" if package == "torch" else "[detr,explore]"
    done = subprocess.run([*install, wanted, *TOOLS[package], f"{wheel}{extra}"], cwd=ROOT, check=False)
    if done.returncode:
        return "cannot be installed here", False
    version = f"from importlib.metadata import version; print(version({package!r}))"
    shown = subprocess.run([python, "-I", "-c", version], capture_output=True, text=True, check=True).stdout.strip()
    tests = [python, "-m", "pytest", "-q", "-n", "2", "-m", "not slow", "--override-ini", "filterwarnings=default"]
    done = subprocess.run([*tests, *SUITES[package]], cwd=ROOT, capture_output=True, text=True, check=False)
    (PLACE / f"{folder.name}.log").write_text(done.stdout + done.stderr)
    if done.returncode == 0:
        shutil.rmtree(folder)
    lines = done.stdout.splitlines()
    return f"{shown}: {lines[-1] if lines else 'no test ran'}", done.returncode == 0


def other_pythons() -> list[str]:
    """Return the other Pythons of the PATH that run: a name there may be that of a switch that is set to none."""
    names = [name for name in OTHER_PYTHONS if name != f"python{PYTHON}" and shutil.which(name)]
    return [
        name for name in names if subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode == 0
    ]


def main(wanted: list[str]) -> int:
    """Try versions one after the other, print a line for each, and return 1 if any failed."""
    PLACE.mkdir(exist_ok=True)
    results = []
    for each in wanted or WANTED:
        said, passed = try_version(each)
        results.append(passed)
        print(f"{'passed' if passed else 'FAILED'}  {each:<22} Python {PYTHON}, {said}", flush=True)
    for python in [] if wanted else other_pythons():
        results.append(subprocess.run([python, __file__, "torch"], cwd=ROOT, check=False).returncode == 0)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
