"""Around the CPU kernels in use: forked and spawned workers, memory that ends, signals, another version's library."""

import importlib.util
import sys
from pathlib import Path

import pytest

from deform_attn.backends.native import registration

pytestmark = pytest.mark.skipif(registration._library is None, reason="the CPU kernels are not built")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory, or forks, as Linux does")

# A module, since a spawned worker imports its data set. The calls are large enough for several threads.
CALLS = """
import torch
from deform_attn import multi_scale_deformable_attention

SHAPES = [(31, 43), (16, 23)]

class Outputs(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        value = torch.randn(1, 1701, 2, 32, generator=generator).requires_grad_()
        locations = torch.rand(1, 400, 2, 2, 4, 2, generator=generator).requires_grad_()
        weights = torch.rand(1, 400, 2, 2, 4, generator=generator).requires_grad_()
        output = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend="native")
        gradients = torch.autograd.grad(output.square().sum(), (value, locations, weights))
        return torch.cat([each.detach().flatten() for each in (output, *gradients)])
"""


@pytest.fixture
def printed(children, tmp_path):
    """Return a function that gives the lines that code prints in a process with the calls above and two threads."""
    (tmp_path / "calls.py").write_text(CALLS)
    # As a file: what a spawned worker imports again.
    start = "import sys\nsys.path.insert(0, '.')\nimport torch\nimport calls\n"
    start += "torch.set_num_threads(2)\ndata = calls.Outputs()\n"

    def run(code):
        done = children.run(start + code, folder=tmp_path)
        assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
        return done.stdout.splitlines()

    return run


WORKERS = """
expected = [data[i] for i in range(4)]
loader = torch.utils.data.DataLoader(data, None, num_workers=2, multiprocessing_context={method!r}, timeout=200)
for _ in range(2):
    print([torch.equal(*pair) for pair in zip(loader, expected, strict=True)])
print(torch.equal(data[0], expected[0]))
"""


@needs_linux
def test_workers_forked_after_a_use_compute_the_same_bits(printed):
    assert printed(WORKERS.format(method="fork")) == [str([True] * 4)] * 2 + ["True"]


@pytest.mark.slow
def test_spawned_workers_compute_the_same_bits(printed):
    assert printed(WORKERS.format(method="spawn")) == [str([True] * 4)] * 2 + ["True"]


@needs_linux
def test_a_child_forked_after_a_use_computes_on_one_thread_the_same_bits(printed):
    code = """
import os
expected = data[0]
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(data[0], expected) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.equal(data[0], expected))
"""
    assert printed(code) == ["0 True"]


@needs_linux
def test_where_memory_ends_in_the_middle_of_a_call_there_is_an_error_and_nothing_stays_behind(printed):
    code = """
import ctypes, resource
from pathlib import Path
ctypes.CDLL(None).mallopt(-3, 1 << 14)  # M_MMAP_THRESHOLD: the C library keeps no large piece for the next call

def kilobytes(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

value = torch.ones(1, 1701, 2, 32, requires_grad=True)
locations, weights = torch.rand(1, 2000, 2, 2, 4, 2), torch.rand(1, 2000, 2, 2, 4)  # so many reads that maps are packed
output = calls.multi_scale_deformable_attention(value, calls.SHAPES, locations, weights, backend="native").sum()
gradient = lambda: torch.autograd.grad(output, value, retain_graph=True)[0]
expected, free = gradient(), resource.getrlimit(resource.RLIMIT_AS)
said, equal = set(), 0
for _ in range(3):
    for more in range(0, 4096, 64):
        resource.setrlimit(resource.RLIMIT_AS, ((kilobytes("VmSize") + more) * 1024, free[1]))
        try:
            equal += torch.equal(gradient(), expected)
        except RuntimeError as error:
            said.add(str(error).partition("\\n")[0])
        resource.setrlimit(resource.RLIMIT_AS, free)
    print(kilobytes("VmRSS"))
print(all("memory" in text or "allocate" in text for text in said), said)
print(torch.equal(gradient(), expected), equal)
"""
    *resident, clear, same = printed(code)
    assert clear.startswith("True"), clear
    assert "no memory for the kernels' working arrays" in clear, clear
    assert same.split()[0] == "True", same
    assert int(same.split()[1]) > 20, same  # where the memory is enough
    first, _, last = map(int, resident)
    assert last - first < 4096, resident


@needs_linux
def test_signals_during_calls_change_no_bit_and_an_exception_of_their_handler_comes_through(printed):
    code = """
import signal
expected, heard = [data[i] for i in range(4)], 0

def hear(number, frame):
    global heard
    heard += 1

def stop(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, hear)
signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
while heard < 50:
    assert all(torch.equal(data[i], expected[i]) for i in range(4))
signal.setitimer(signal.ITIMER_REAL, 0)
try:
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1e-2)  # once: a second one would come while the first is dealt with
    while True:
        data[0]
except KeyboardInterrupt:
    print("stopped")
print(torch.equal(data[0], expected[0]))
"""
    assert printed(code) == ["stopped", "True"]


def test_a_library_of_another_version_is_left_alone_and_the_package_still_works(children, tmp_path):
    other = tmp_path / "_native.so"
    data = Path(importlib.util.find_spec("deform_attn._native").origin).read_bytes()
    assert b"bool[] wanted" in data
    other.write_bytes(data.replace(b"bool[] wanted", b"bool[] wished"))
    code = f"""
import importlib.util, warnings
find = importlib.util.find_spec
Spec = type("Spec", (), {{"origin": {str(other)!r}}})
importlib.util.find_spec = lambda name: Spec if "_native" in name else find(name)
import torch, deform_attn
value, weights = torch.arange(6.0).reshape(1, 6, 1, 1), torch.ones(1, 1, 1, 1, 1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    output = deform_attn.multi_scale_deformable_attention(value, [(2, 3)], torch.full((1, 1, 1, 1, 1, 2), 0.5), weights)
print(output.tolist(), *deform_attn.explain().reasons["native"], len(caught))
"""
    done = children.run(code)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    reason = "the CPU kernels are of another version of deform-attn. Install deform-attn again"
    assert line == f"[[[2.5]]] {reason} 1"
