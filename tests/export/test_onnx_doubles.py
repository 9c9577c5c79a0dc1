"""Patched modules of other projects as files of ONNX: doubles of them, in the form of the original and of its kin."""

import pytest
import torch

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

from doubles import loading  # noqa: E402
from doubles.calls import FAMILIES  # noqa: E402

from deform_attn import patch  # noqa: E402
from deform_attn.export import to_onnx  # noqa: E402


class Positional(torch.nn.Module):
    """A module whose tensors come by position; what is no tensor is bound."""

    def __init__(self, module, arguments):
        super().__init__()
        self.module = module
        self.names = [name for name, given in arguments.items() if isinstance(given, torch.Tensor)]
        self.bound = {name: given for name, given in arguments.items() if name not in self.names}

    def forward(self, *inputs):
        return self.module(**dict(zip(self.names, inputs, strict=True)), **self.bound)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [("deformable_detr", "points"), ("vit_adapter", "boxes"), ("mmcv", "points"), ("rtdetrv2_decoder", "boxes")],
)
def test_a_patched_double_is_written_with_its_sizes_in_a_tensor_or_in_ints(family, name, monkeypatch, tmp_path):
    call = FAMILIES[family][2][name]
    module = loading.redrawn(monkeypatch, family, call, loading.uncompiled).float()
    assert patch(module).left == []
    given = call.tensors | call.others
    model = Positional(module, {n: x.float() if _is_float(x) else x for n, x in given.items()})
    example = tuple(given[n].float() if _is_float(given[n]) else given[n] for n in model.names)
    exported = to_onnx(model, example, tmp_path / "module.onnx")
    assert exported.error < 1e-5
    batch = {shape[0] for shape in exported.inputs.values() if len(shape) > 2}
    assert all(isinstance(size, str) for size in batch)


def _is_float(thing):
    return isinstance(thing, torch.Tensor) and thing.is_floating_point()
