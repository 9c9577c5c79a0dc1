"""A driver of Triton without a device: kernels are compiled for a GPU that is not here, and launched into nothing."""

import collections
import re
import subprocess
import tempfile
from pathlib import Path

import torch

from deform_attn import checks
from deform_attn.backends.triton import launch as launching
from deform_attn.backends.triton import prepared
from deform_attn.backends.triton.layout import call_of
from deform_attn.torch_ops import schema

MAPS = [(100, 167), (50, 84), (25, 42), (13, 21)]


def active_driver(arch):
    """Make a driver for `sm_90`, `gfx942` or the like the active one, and return it; it counts `launches`."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import driver

    hip = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if hip else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)

    class Launcher:
        def __init__(self, _source, _metadata):
            pass

        def __call__(self, *args):
            driver.active.launched(args)  # whichever is active: Triton keeps kernels beyond a driver

    class Utils:
        def get_device_properties(self, _device):
            return {"max_shared_mem": 65536 if hip else 232448, "multiprocessor_count": 132, "warpSize": 32}

        def load_binary(self, *_):
            return 1, 2, 64, 0, 1024  # a module, or Triton would load it for each launch

        def unload_module(self, *_):
            pass

    class NoDevice(DriverBase):
        launcher_cls = Launcher

        def __init__(self):
            self.launches = 0
            self.utils = Utils()

        def launched(self, _args):
            self.launches += 1

        @classmethod
        def is_active(cls):
            return True

        def get_current_target(self):
            return target

        def get_current_device(self):
            return arch  # Triton keeps kernels by device

        def get_current_stream(self, _device):
            return 0

        def get_active_torch_device(self):
            return torch.device("cpu")

        def get_benchmarker(self):
            raise NotImplementedError

        def map_python_to_cpp_type(self, kind):
            return kind

    active = NoDevice()
    driver.set_active(active)
    return active


def call(form, maps=MAPS, dtype=torch.float32, queries=None, N=1, M=8, D=32, P=4, boxes=False, masked=False, grad=True):
    """Return a call of one of the ops, as its kernels take it, and which gradients it wants."""
    S, L = sum(H * W for H, W in maps), len(maps)
    Q = S if queries is None else queries
    value = torch.empty(N, S, M, D, dtype=dtype)
    points, weights = torch.empty(N, Q, M, L, P, 2), torch.empty(N, Q, M, L * P)
    if form == "classic":
        weights = weights.unflatten(-1, (L, P))
        inputs = checks.sampling_inputs(value, maps, points, weights, None, "bilinear", "zeros")
    else:
        references = torch.empty(N, Q, L, 4 if boxes else 2)
        mask = torch.zeros(N, S, dtype=torch.bool) if masked else None
        inputs = checks.attention_inputs(value, maps, references, points, weights, None, mask, 0.5, "bilinear", "zeros")
    return call_of(schema.op_of(inputs), schema.arguments(inputs))


def forget():
    """Forget all launches and compiled kernels."""
    launching._compiled.clear()
    prepared._launches.clear()


def kernel_of(call, backward=False, references=True):
    """Return the compiled kernel of a call for the active driver."""
    forget()
    wanted = [backward, backward, backward, backward and references and call.references is not None]
    prepared.launch_of_call(call).prepare(call.tensors, None, wanted)
    return list(launching._compiled.values())[-1]


def instructions(kernel):
    """Return how often each instruction is in the machine code, and what of its resources the assembler says."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        code, usage = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-sass", "-res-usage")
        )
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code)
    counts = collections.Counter(name for name in names if name != "NOP")
    used = {key: int(number) for key, number in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage)}
    return counts, used


def by_row_point(kernel, call, backward=False):
    """Return how many instructions a warp runs for each row and point, if every row takes every one of them."""
    counts, _ = instructions(kernel)
    tile = prepared.launch_of_call(call)._tiles[backward]
    return sum(counts.values()) * tile.num_warps / (tile.B * sum(call.counts))


__all__ = ["MAPS", "active_driver", "by_row_point", "call", "forget", "instructions", "kernel_of"]
