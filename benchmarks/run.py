"""The command: `python -m benchmarks.run` measures, writes benchmarks/results/NAME.json and prints the tables.

`make bench` runs it in an environment of its own with all rivals, `ARGS="--only forward --cases enc640"` a part of it.
`--markdown` measures nothing and writes the tables of docs/ and the plot anew from the results that are there.
"""

import argparse
import datetime
import json
import logging
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

# Before torch starts its threads: the rivals' pools read it, too.
os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch

from benchmarks import report, series
from benchmarks.cases import BEYOND, CANONICAL, CASES
from benchmarks.detector import whole_detector
from benchmarks.end_to_end import compare_patched
from benchmarks.measure import QUIET, compare
from benchmarks.models import MODELS
from benchmarks.onnx import exported_models
from benchmarks.operators import operators
from benchmarks.packages import versions
from benchmarks.peers import PEERS
from benchmarks.research import RESEARCH
from benchmarks.sources import commit
from deform_attn.backends.native import library as native_library
from deform_attn.timing import machine

SECTIONS = (
    "forward",
    "training",
    "thread_scaling",
    "map_sizes",
    "query_counts",
    "memory",
    "module",
    "compiled",
    "overhead",
    "end_to_end",
    "detector",
    "onnx",
    "operators",
)

WHOLE_MODELS = {**MODELS, **RESEARCH}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="of the result; by default after processor and threads")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to measure")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="cases to measure")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=WHOLE_MODELS,
        default=list(MODELS),
        help="whole models to measure, those that are installed (default: those of transformers)",
    )
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], help="rivals; by default all")
    parser.add_argument("--seconds", type=float, default=20, help="for each case (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="for everybody (default 2)")
    parser.add_argument(
        "--wait", type=float, default=0, help="minutes more for each case while others disturb it (default 0)"
    )
    parser.add_argument("--resume", action="store_true", help="measure only what the result lacks or others disturbed")
    parser.add_argument("--markdown", action="store_true", help="only write docs and plot from the results")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Path:
    """Measure what `options` ask for and return the file that holds it; other sections of the file stay."""
    torch.set_num_threads(options.threads)
    library, _ = native_library.load()
    here = {**machine(), "our_instruction_set": "none" if library is None else library.isa}
    name = options.name or re.sub(r"[^a-z0-9]+", "-", f"{here['processor']} {options.threads} threads".lower())
    path = report.RESULTS / f"{name}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    if result and (result["machine"], result["threads"]) != (here, options.threads):
        result = {}  # of another machine: nothing of it may stand beside what is measured now
    if options.resume and result and result["commit"] != commit():
        raise SystemExit(f"{path} is of the sources at {result['commit']}, not of these: measure without --resume")
    result.update(name=name, machine=here, threads=options.threads, versions=versions(), commit=commit())
    peers = [peer for peer in PEERS if options.peers is None or peer.name in options.peers]
    seconds, wait = options.seconds, options.wait
    for section in [section for section in SECTIONS if section in options.only]:
        print(f"{section}:", flush=True)
        if section in ("forward", "training"):
            rows = result.setdefault(section, {})
            for case in [case for case in CANONICAL + BEYOND if case.name in options.cases]:
                if options.resume and undisturbed(rows.get(case.name)):
                    continue
                rows[case.name] = compare(
                    case, peers, options.threads, seconds, trains=section == "training", wait=wait, say=_say
                )
                _say(f"  {case.name}: {report.in_a_line(rows[case.name])}")
                _write(path, result)
        elif section == "end_to_end":
            rows = result.setdefault(section, {})
            for name in options.models:
                if options.resume and undisturbed(rows.get(name)):
                    continue
                if (reason := WHOLE_MODELS[name].unavailable()) is not None:
                    _say(f"  {name}: skipped, {reason}")
                    continue
                rows[name] = compare_patched(WHOLE_MODELS[name], seconds, wait, _say)
                _write(path, result)
        elif not (options.resume and undisturbed(result.get(section))):
            measures: dict[str, Callable[[], dict[str, object]]] = {
                "thread_scaling": lambda: series.thread_scaling(options.threads, seconds, wait),
                "map_sizes": lambda: series.map_sizes(seconds, wait),
                "query_counts": lambda: series.query_counts(seconds, wait),
                "memory": lambda: series.peak_memory(peers, options.threads, _say),
                "module": lambda: series.module(seconds, wait),
                "overhead": lambda: series.overhead(seconds, wait),
                "compiled": lambda: series.compiled(seconds, wait),
                "detector": lambda: whole_detector(seconds, _say),
                "onnx": lambda: exported_models(options.threads, seconds, wait, _say),
                "operators": lambda: operators(options.threads, seconds, wait, _say),
            }
            result[section] = measures[section]()
        result.setdefault("measured", {})[section] = datetime.date.today().isoformat()
        _write(path, result)
    return path


def undisturbed(measured: dict[str, object] | None) -> bool:
    """Return whether something was measured, and others left the cores alone meanwhile."""
    if measured is None:
        return False
    busy = measured.get("busy_elsewhere")
    inner = [value for value in measured.values() if isinstance(value, dict)]
    return (busy is None or busy <= QUIET) and all(undisturbed(value) for value in inner)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    if options.markdown:
        for path in report.write_documents():
            print(f"wrote {path}")
        return
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    path = run(options)
    print(f"\n{report.tables_of(json.loads(path.read_text()))}\n\nwrote {path}")


def _say(line: str) -> None:
    print(line, flush=True)


def _write(path: Path, result: dict[str, object]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
