"""The rivals: how each is prepared for a case, and what keeps it from running.

A prepared rival is a function of value, locations and weights, as `Case.inputs` lays them out, to the output
`[N, Q, M*D]`. All of them may use the number of threads given and no more.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import runtimes
from benchmarks.packages import not_installed
from deform_attn.timing import Case, Op

HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Peer:
    """One rival.

    `packages` are the modules that it imports, `trains` says whether it has a backward pass, `apart` whether it is so
    slow that it takes turns with us alone.
    """

    name: str
    label: str
    packages: tuple[str, ...]
    trains: bool = False
    apart: bool = False

    def unavailable(self) -> str | None:
        """Return what keeps it from running on this machine at all."""
        return not_installed(self.packages)

    def unsupported(self, case: Case, trains: bool = False) -> str | None:
        """Return what keeps it from running this case."""
        return "it has no backward pass" if trains and not self.trains else None

    def prepare(self, case: Case, threads: int) -> Op:
        """Return the function that computes `case`."""
        raise NotImplementedError


class Eager(Peer):
    """transformers' own modules: torch's grid_sample, one call a level."""

    def prepare(self, case: Case, threads: int) -> Op:
        """Return the module's forward; half-precision values go through float32, as they do under autocast."""
        return in_float32(EagerModule(case), case)


class Compiled(Peer):
    """The same under torch.compile."""

    def unsupported(self, case: Case, trains: bool = False) -> str | None:
        """Return what keeps it from running this case."""
        if case.name not in ("enc640", "dec300", "rtdetr"):
            return "it takes minutes to compile and run: timed on three canonical cases only"
        return super().unsupported(case, trains)

    def prepare(self, case: Case, threads: int) -> Op:
        """Return the compiled module; the first call compiles."""
        torch._dynamo.reset()
        return torch.compile(EagerModule(case), dynamic=False)


class OnnxRuntime(Peer):
    """ONNX Runtime running the graph that torch.onnx.export makes of the eager module."""

    def unsupported(self, case: Case, trains: bool = False) -> str | None:
        """Return what keeps it from running this case."""
        return super().unsupported(case, trains) or _not_exported(case)

    def prepare(self, case: Case, threads: int) -> Op:
        """Return the call of a session."""
        with tempfile.TemporaryDirectory() as folder:
            run = runtimes.onnxruntime(export_graph(case, Path(folder)), threads)
        return lambda *tensors: run(*tensors)[0]


class OpenVino(Peer):
    """OpenVINO running the same graph."""

    def unsupported(self, case: Case, trains: bool = False) -> str | None:
        """Return what keeps it from running this case."""
        return super().unsupported(case, trains) or _not_exported(case)

    def prepare(self, case: Case, threads: int) -> Op:
        """Return the call of a compiled model that computes in float32."""
        with tempfile.TemporaryDirectory() as folder:
            run = runtimes.openvino(export_graph(case, Path(folder)), threads)
        return lambda *tensors: run(*tensors)[0]


class TorchMsDeformAttn(Peer):
    """The package torch-ms-deform-attn: the original extension, with a scalar C++ loop for the CPU."""

    def unsupported(self, case: Case, trains: bool = False) -> str | None:
        """Return what keeps it from running this case."""
        if not case.equal_points:
            return "it wants one count of points for all levels"
        return super().unsupported(case, trains)

    def prepare(self, case: Case, threads: int) -> Op:
        """Return its function."""
        from torch_ms_deform_attn import ms_deform_attn

        shapes = torch.tensor(case.spatial_shapes)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), shapes.prod(1).cumsum(0)[:-1]])
        return in_float32(lambda *tensors: ms_deform_attn(tensors[0], shapes, starts, *tensors[1:]), case)


class EagerModule(nn.Module):
    """The module of transformers for a case, called with tensors alone."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        if case.equal_points:
            from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

            self.attention = MultiScaleDeformableAttention()

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """Return the output `[N, Q, M*D]`."""
        shapes = list(self.case.spatial_shapes)
        if self.case.equal_points:
            return self.attention(value, None, shapes, None, locations, weights, 64)
        from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import multi_scale_deformable_attention_v2

        return multi_scale_deformable_attention_v2(value, shapes, locations, weights, list(self.case.num_points))


def in_float32(op: Op, case: Case) -> Op:
    """Return `op` behind casts to float32 and back for a case of half precision, and `op` itself otherwise."""
    if case.dtype not in HALVES:
        return op
    return lambda value, locations, weights: op(value.float(), locations, weights).to(case.dtype)


def export_graph(case: Case, folder: Path) -> str:
    """Write the eager module for `case` as an ONNX file with GridSample nodes into `folder` and return its path."""
    path = str(folder / f"{case.name}.onnx")
    torch.onnx.export(EagerModule(case).eval(), tuple(case.inputs()[:3]), path, dynamo=True, verbose=False)
    return path


def _not_exported(case: Case) -> str | None:
    return None if case.dtype == torch.float32 else "its GridSample is timed in float32 only"


EAGER = Eager("eager", "eager grid_sample (transformers)", ("transformers",), trains=True)
PEERS: tuple[Peer, ...] = (
    EAGER,
    Compiled("compile", "the same, torch.compile", ("transformers",), apart=True),
    OnnxRuntime("onnxruntime", "ONNX Runtime", ("transformers", "onnxruntime", "onnx", "onnxscript")),
    OpenVino("openvino", "OpenVINO", ("transformers", "openvino", "onnx", "onnxscript")),
    TorchMsDeformAttn("torch-ms-deform-attn", "torch-ms-deform-attn", ("torch_ms_deform_attn",), trains=True),
)
