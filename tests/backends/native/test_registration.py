"""How the library registers its kernels with torch: the ops it defines, once, and what is in the way said in words."""

import shutil
import sys

import pytest

from deform_attn.backends.native import registration
from deform_attn.torch_ops import schema

pytestmark = pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built")

# Has torch and calls the library as a program does that has no Python.
LOAD = """
import ctypes, sys, torch
path, torch_path = sys.argv[1:]
register = ctypes.CDLL(path).deform_attn_register_with_torch
register.argtypes, register.restype = [ctypes.c_char_p, ctypes.c_int32], ctypes.c_char_p
def say(libtorch_cpu, define):
    text = register(None if libtorch_cpu is None else libtorch_cpu.encode(), define)
    print("registered" if text is None else text.decode())
value, locations, weights = torch.ones(1, 6, 1, 3), torch.full((1, 4, 1, 2, 2), 0.5), torch.ones(1, 4, 1, 2)
call = value, [2, 3], locations, weights, [2], "bilinear", "zeros"
"""


@pytest.fixture
def said(children):
    """Return a function that gives the lines that a new process prints, in which the library is the file at `path`."""

    def lines(code, path):
        done = children.run(LOAD + code, str(path), str(registration.library._torch_library()))
        assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
        return done.stdout.splitlines()

    return lines


def built():
    return registration.library.importlib.util.find_spec("deform_attn._native").origin


def test_the_schemas_that_the_library_defines_are_those_of_the_table():
    ops = [op for each in schema.OPS for op in (each.forward, each.backward)]
    ops += [schema.SAMPLE.judged, schema.ATTEND.judged]
    assert sorted(registration.loaded().torch_schemas) == sorted(
        str(op._schema).removeprefix("deform_attn::") for op in ops
    )


def test_a_process_where_python_defines_nothing_gets_ops_that_run_and_registers_them_once(said):
    lines = said(
        """
say(torch_path, 1)
print(torch.ops.deform_attn.multi_scale_deformable_attention(*call).unique().tolist())
say(torch_path, 1)
say(torch_path, 0)
print(torch.ops.deform_attn.multi_scale_deformable_attention(*call).unique().tolist())
""",
        built(),
    )
    assert lines == ["registered", "[2.0]", "registered", "registered", "[2.0]"]


def test_what_is_in_the_way_is_said_and_a_later_call_may_succeed(said, tmp_path):
    missing = tmp_path / "libtorch_cpu.so"
    path, none, mended = said(
        f"say({str(missing)!r}, 1)\nsay(None, 1)\nsay(torch_path, 1)",
        built(),
    )
    assert path == (
        f"libtorch_cpu: expected the path of torch's library, got {missing}, which does not load. "
        "Pass that of libtorch_cpu in the folder torch/lib."
    )
    if sys.platform.startswith("linux"):  # where Python loads torch for itself alone
        assert none == (
            "this process is not linked with a torch that has aoti_torch_abi_version. Pass the path of libtorch_cpu."
        )
    assert mended == "registered"


def test_where_python_has_defined_the_ops_a_second_definition_is_refused_and_calls_go_on(said, tmp_path):
    copy = shutil.copy(built(), tmp_path / "copy_of_native.so")  # has registered nothing yet
    lines = said(
        """
import deform_attn
print(torch.ops.deform_attn.multi_scale_deformable_attention(*call).unique().tolist())
say(torch_path, 1)
print(torch.ops.deform_attn.multi_scale_deformable_attention(*call).unique().tolist())
""",
        copy,
    )
    refused = "deform_attn: torch could not define the ops (did Python define them? Pass 0 for define)"
    assert lines == ["[2.0]", refused, "[2.0]"]
