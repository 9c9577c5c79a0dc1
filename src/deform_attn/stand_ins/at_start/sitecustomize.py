"""What every Python runs at its start below the runner: it makes the stand-ins importable there.

The runner puts this folder on PYTHONPATH. Neither deform_attn nor torch is imported before a stand-in is. The
sitecustomize that this one hides, of an environment or a tool, runs afterwards.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location

HERE = os.path.dirname(os.path.abspath(__file__))


def _run(spec: ModuleSpec) -> None:
    module = sys.modules[spec.name] = module_from_spec(spec)
    if spec.loader is not None:
        spec.loader.exec_module(module)


# Under its own name, so that there is one finder in a process, whoever asks for it.
_finder = spec_from_file_location("deform_attn.stand_ins.finder", os.path.join(os.path.dirname(HERE), "finder.py"))
if _finder is not None:
    _run(_finder)
    sys.modules["deform_attn.stand_ins.finder"].install()

sys.path[:] = [path for path in sys.path if os.path.abspath(path) != HERE]
_hidden = PathFinder.find_spec("sitecustomize")
if _hidden is not None:
    _run(_hidden)
