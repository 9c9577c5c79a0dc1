"""The rivals on a GPU: how each is called, and what keeps it from a case. None is installed from here."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers import in_float32
from deform_attn.timing import Case, Op, grid_sample_op

Prepare = Callable[[Case, torch.device], Op]


@dataclass(frozen=True)
class Rival:
    """One rival: its name, how it is prepared for a case on a device, and the module that it imports, if any.

    `equal_points` says whether it wants one count of points for all levels.
    """

    name: str
    prepare: Prepare
    module: str | None = None
    equal_points: bool = True

    def absent(self, case: Case) -> str | None:
        """Return what keeps it from running this case here."""
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            return f"not installed: {self.module}"
        if self.equal_points and not case.equal_points:
            return "it wants one count of points for all levels"
        return None


def _grid_sample(case: Case, _: torch.device) -> Op:
    return in_float32(grid_sample_op(case), case)


def _compiled(case: Case, device: torch.device) -> Op:
    torch._dynamo.reset()
    return torch.compile(_grid_sample(case, device), dynamic=False)


def _torch_ms_deform_attn(case: Case, device: torch.device) -> Op:
    from torch_ms_deform_attn import ms_deform_attn

    shapes, starts = _levels(case, device)
    return in_float32(lambda value, *points: ms_deform_attn(value, shapes, starts, *points), case)


def _deformops(case: Case, device: torch.device) -> Op:
    from deformops.registry import msda

    shapes, starts = _levels(case, device)

    def op(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return msda(value, shapes, starts, locations, weights.to(value.dtype))  # it takes no wider weights

    return op


def _msda_triton(case: Case, device: torch.device) -> Op:
    # Its public function falls back to grid_sample without a word; this one is the kernel or an error.
    from msda_triton.frontend import triton_multiscale_deformable_attention

    shapes, _ = _levels(case, device)

    def op(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return triton_multiscale_deformable_attention(value, shapes, locations, weights, "zeros", False).flatten(2)

    return in_float32(op, case)


def _levels(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sizes of the levels `[L, 2]` and where each begins `[L]`, on the device."""
    shapes = torch.tensor(case.spatial_shapes)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), shapes.prod(1).cumsum(0)[:-1]])
    return shapes.to(device), starts.to(device)


RIVALS = (
    Rival("grid_sample", _grid_sample, equal_points=False),
    Rival("grid_sample compiled", _compiled, equal_points=False),
    Rival("torch-ms-deform-attn", _torch_ms_deform_attn, "torch_ms_deform_attn"),
    Rival("deformops", _deformops, "deformops"),
    Rival("msda-triton", _msda_triton, "msda_triton"),
)
