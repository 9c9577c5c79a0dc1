"""A driver of Triton without a device: kernels are compiled for a GPU that is not here, and launched into nothing."""

from collections.abc import Sequence
from typing import Any

import torch

from deform_attn import checks
from deform_attn.backends.triton import launch as launching
from deform_attn.backends.triton import prepared
from deform_attn.backends.triton.layout import Call, call_of
from deform_attn.torch_ops import schema

MAPS = [(100, 167), (50, 84), (25, 42), (13, 21)]


def active_driver(arch: str) -> Any:
    """Make a driver for `sm_90`, `gfx942` or the like the active one, and return it; it counts `launches`."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import driver

    hip = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if hip else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)

    class Launcher:
        def __init__(self, _source: Any, _metadata: Any) -> None:
            pass

        def __call__(self, *args: Any) -> None:
            driver.active.launched(args)  # whichever is active: Triton keeps kernels beyond a driver

    class Utils:
        def get_device_properties(self, _device: Any) -> dict[str, int]:
            return {"max_shared_mem": 65536 if hip else 232448, "multiprocessor_count": 132, "warpSize": 32}

        def load_binary(self, *_: Any) -> tuple[int, ...]:
            return 1, 2, 64, 0, 1024  # a module, or Triton would load it for each launch

        def unload_module(self, *_: Any) -> None:
            pass

    class NoDevice(DriverBase):
        launcher_cls = Launcher

        def __init__(self) -> None:
            self.launches = 0
            self.utils = Utils()

        def launched(self, _args: Any) -> None:
            self.launches += 1

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> Any:
            return target

        def get_current_device(self) -> str:
            return arch  # Triton keeps kernels by device

        def get_current_stream(self, _device: Any) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_benchmarker(self) -> Any:
            raise NotImplementedError

        def map_python_to_cpp_type(self, kind: str) -> str:
            return kind

    active = NoDevice()
    driver.set_active(active)
    return active


def call(
    form: str,
    maps: Sequence[tuple[int, int]] = MAPS,
    dtype: torch.dtype = torch.float32,
    queries: int | None = None,
    N: int = 1,
    M: int = 8,
    D: int = 32,
    P: int = 4,
    boxes: bool = False,
    masked: bool = False,
) -> Call:
    """Return a call of one of the ops, as its kernels take it; without `queries` those are the maps' own pixels."""
    S, L = sum(H * W for H, W in maps), len(maps)
    Q = S if queries is None else queries
    value = torch.empty(N, S, M, D, dtype=dtype)
    points, weights = torch.empty(N, Q, M, L, P, 2), torch.empty(N, Q, M, L * P)
    inputs: checks.Inputs
    if form == "classic":
        weights = weights.unflatten(-1, (L, P))
        inputs = checks.sampling_inputs(value, maps, points, weights, None, "bilinear", "zeros")
    else:
        references = torch.empty(N, Q, L, 4 if boxes else 2)
        mask = torch.zeros(N, S, dtype=torch.bool) if masked else None
        inputs = checks.attention_inputs(value, maps, references, points, weights, None, mask, 0.5, "bilinear", "zeros")
    return call_of(schema.op_of(inputs), schema.arguments(inputs))


def forget() -> None:
    """Forget all launches and compiled kernels."""
    launching._compiled.clear()
    prepared._launches.clear()


def kernel_of(call: Call, backward: bool = False, references: bool = True) -> Any:
    """Return the compiled kernel of a call for the active driver."""
    forget()
    wanted = [backward, backward, backward, backward and references and call.references is not None]
    prepared.launch_of_call(call).prepare(call.tensors, None, wanted)
    return list(launching._compiled.values())[-1]


def row_points_a_warp(call: Call, backward: bool = False) -> float:
    """Return how many points of rows each warp of a launch of this call has."""
    tile = prepared.launch_of_call(call)._tiles[backward]
    return tile.B * sum(call.counts) / tile.num_warps
