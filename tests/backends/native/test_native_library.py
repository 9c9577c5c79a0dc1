"""The library of CPU kernels: that it loads, what it exports, which instruction set it takes, and life without it."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from deform_attn import explain, multi_scale_deformable_attention
from deform_attn.backends import registry, remembered
from deform_attn.backends.base import SlowBackendWarning
from deform_attn.backends.kinds import Kinds
from deform_attn.backends.native import library as native_library
from deform_attn.backends.native import registration

TESTS = Path(__file__).parents[2]
ONE_CALL = """
import torch, deform_attn
from deform_attn.backends.native import registration
value, locations, weights = torch.ones(1, 6, 1, 3), torch.full((1, 4, 1, 1, 2, 2), 0.5), torch.ones(1, 4, 1, 1, 2)
output = deform_attn.multi_scale_deformable_attention(value, [(2, 3)], locations, weights)
assert torch.equal(output, torch.full((1, 4, 3), 2.0)), output
print(registration._library.isa if registration._library else deform_attn.explain())
"""


def library():
    assert registration._library is not None, registration._reasons
    return registration._library


def classic_call():
    return torch.ones(1, 6, 1, 3), [(2, 3)], torch.full((1, 4, 1, 1, 2, 2), 0.5), torch.ones(1, 4, 1, 1, 2)


def symbols(*options):
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    path = native_library.importlib.util.find_spec("deform_attn._native").origin
    lines = subprocess.run([nm, *options, path], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split()[-2:] for line in lines if len(line.split()) > 1]


def test_the_library_loads():
    assert explain().reasons["native"] == []


def test_it_is_the_first_choice_for_cpu_tensors():
    assert explain(*classic_call()).backend == "native"


def test_it_takes_the_best_instruction_set_of_the_machine(children):
    done = children.run(ONE_CALL, DEFORM_ATTN_ISA=None)
    assert done.stdout.strip() == library().isas[0], done.stderr
    assert library().isas[-1] == "baseline"


LOWER_ISAS = registration._library.isas[1:] if registration._library else []


@pytest.mark.parametrize("isa", LOWER_ISAS)
def test_a_lower_instruction_set_can_be_asked_for(children, isa):
    assert children.run(ONE_CALL, DEFORM_ATTN_ISA=isa).stdout.strip() == isa


@pytest.mark.slow
@pytest.mark.parametrize("isa", LOWER_ISAS)
def test_a_lower_instruction_set_passes_the_same_tests(isa):
    files = [
        "core/test_functional.py",
        "backends/native/test_native_numbers.py",
        "properties/test_native_properties.py",
    ]
    chosen = ["-k", "native and not gradgradcheck", "-m", "not slow"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *files]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "DEFORM_ATTN_ISA": isa}
    done = subprocess.run(command, env=environment, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d+ passed", done.stdout), done.stdout[-3000:]


def test_an_unknown_instruction_set_is_refused_and_the_package_still_works(children):
    quiet = "import warnings\nwarnings.simplefilter('ignore')\n"
    done = children.run(quiet + ONE_CALL, DEFORM_ATTN_ISA="x86-64-v9")
    assert done.returncode == 0, done.stderr
    assert "DEFORM_ATTN_ISA: expected one of" in done.stdout
    assert "'x86-64-v9'" in done.stdout


def test_nothing_but_the_interface_is_exported():
    exported = {name for kind, name in symbols("--dynamic", "--defined-only") if kind in "TDBR"}
    names = [
        "check",
        "forward",
        "backward",
        "run_row",
        "isa",
        "isas",
        "call_size",
        "register_with_torch",
        "torch_schemas",
    ]
    # The other is the name by which ONNX Runtime looks for a library's operators.
    assert exported == {*(f"deform_attn_{name}" for name in names), "RegisterCustomOps"}


def test_it_needs_neither_torch_nor_a_thread_pool_nor_the_standard_library_of_c_plus_plus():
    wanted = {name.split("@")[0] for kind, name in symbols("--dynamic", "--undefined-only")}
    assert not {name for name in wanted if re.match(r"_Z|GOMP|omp_|pthread|aoti|torch", name)}


def test_a_library_that_is_missing_is_a_reason(monkeypatch):
    monkeypatch.setattr(native_library.importlib.util, "find_spec", lambda name: None)
    loaded, (reason,) = native_library.load()
    assert loaded is None
    assert "not built" in reason


def test_a_file_that_is_no_library_is_a_reason(monkeypatch, tmp_path):
    broken = tmp_path / "_native.so"
    broken.write_text("no library")
    spec = type("Spec", (), {"origin": str(broken)})
    monkeypatch.setattr(native_library.importlib.util, "find_spec", lambda name: spec)
    loaded, (reason,) = native_library.load()
    assert loaded is None
    assert "do not load" in reason


def test_without_the_library_the_first_slow_call_warns_and_no_other_does(monkeypatch):
    monkeypatch.setattr(registration, "_reasons", ["it is not here"])
    monkeypatch.setattr(registry, "_warned", set())
    monkeypatch.setattr(remembered, "_calls", Kinds())
    with pytest.warns(SlowBackendWarning, match="it is not here"):
        first = multi_scale_deformable_attention(*classic_call())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = multi_scale_deformable_attention(*classic_call())
    assert torch.equal(first, second)
    assert explain().reasons["native"] == ["it is not here"]


def test_a_slow_backend_that_was_asked_for_does_not_warn(monkeypatch):
    monkeypatch.setattr(registration, "_reasons", ["it is not here"])
    monkeypatch.setattr(registry, "_warned", set())
    monkeypatch.setattr(remembered, "_calls", Kinds())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        multi_scale_deformable_attention(*classic_call(), backend="reference")


def test_no_memory_is_an_error_and_not_a_crash():
    value = torch.zeros(1, 6, 1, 1).expand(1, 6, 1, 2**44)
    with pytest.raises(RuntimeError, match="allocate"):
        multi_scale_deformable_attention(value, *classic_call()[1:])


def test_without_a_function_of_torch_the_kernels_are_registered_from_python_and_explain_says_so(children, tmp_path):
    hidden = tmp_path / "_native.so"
    path = native_library.importlib.util.find_spec("deform_attn._native").origin
    data = Path(path).read_bytes()
    assert b"\0torch_list_get_item\0" in data
    hidden.write_bytes(data.replace(b"\0torch_list_get_item\0", b"\0torch_list_got_item\0"))
    here = f"""
import importlib.util, sys
find = importlib.util.find_spec
Spec = type("Spec", (), {{"origin": {str(hidden)!r}}})
importlib.util.find_spec = lambda name: Spec if "_native" in name else find(name)
"""
    calls = Path(__file__).parent / "both_registrations.py"
    code = f"exec(open({str(calls)!r}).read())"
    results = [children.run(before + code, DEFORM_ATTN_ISA=None) for before in ("", here)]
    usual, without = [done.stdout.splitlines() for done in results]
    assert "note: the CPU kernels are called through Python" not in usual[0], results[0].stderr
    assert "called through Python, which costs more time a call: this torch has no torch_list_got_item" in without[0]
    assert len(usual) > 60
    assert without[1:] == usual[1:], results[1].stderr
