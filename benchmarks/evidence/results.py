"""Results of the evidence: JSON under benchmarks/results, with what it was measured on, and the plots beside them."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.packages import versions
from benchmarks.sources import commit
from deform_attn.backends.native import library as native_library
from deform_attn.detr.files import atomic_path
from deform_attn.timing import machine

IMAGES = report.ROOT / "docs" / "images"


def write(name: str, measured: Mapping[str, Any]) -> Path:
    """Write `measured` as the result `name`, with machine, threads, versions, commit and day, and return its file."""
    library, _ = native_library.load()
    here = {**machine(), "our_instruction_set": "none" if library is None else library.isa}
    origin = {"name": name, "machine": here, "threads": torch.get_num_threads(), "versions": versions()}
    origin |= {"commit": commit(), "measured": datetime.date.today().isoformat()}
    path = report.RESULTS / f"{name}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(origin | dict(measured), indent=1) + "\n", encoding="utf-8")
    return path
