"""Whole models as files of ONNX: ours, patched models of transformers, and torch's own exporter."""

import pytest
import torch

for package in ("onnx", "onnxscript", "onnxruntime", "transformers"):
    pytest.importorskip(package)

import onnx  # noqa: E402
from onnx_cases import run_file  # noqa: E402

import interop_cases  # noqa: E402
from deform_attn import DeformableAttention, patch  # noqa: E402
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TransformerConfig  # noqa: E402
from deform_attn.detr.model.deformable_detr import build_model  # noqa: E402
from deform_attn.detr.prediction.export_model import LastLayer  # noqa: E402
from deform_attn.export import to_onnx  # noqa: E402

slow = pytest.mark.slow
PATCHED = ["rt_detr_v2"]


class Results(torch.nn.Module):
    """A model of transformers with those of its outputs that depend on the op."""

    def __init__(self, name):
        super().__init__()
        self.model = interop_cases.build(name)
        self.names, self.arguments = interop_cases.CASES[name].outputs, list(interop_cases.CASES[name].inputs())
        patch(self.model)

    def forward(self, *inputs):
        output = self.model(**dict(zip(self.arguments, inputs, strict=True)))
        return {name: output[name] for name in self.names}


@slow
@pytest.mark.parametrize("form", ["gridsample"])
@pytest.mark.parametrize("name", PATCHED)
def test_a_patched_model_is_written_and_gives_the_same(name, form, tmp_path):
    file = tmp_path / "model.onnx"
    inputs = tuple(interop_cases.CASES[name].inputs().values())
    exported = to_onnx(Results(name), inputs, file, form=form, dynamic=False)
    assert list(exported.outputs) == list(interop_cases.CASES[name].outputs)
    assert exported.error < 1e-4


@slow
@pytest.mark.parametrize("form", ["gridsample", "gather"])
def test_the_detector_is_written_for_any_batch_and_size(form, tmp_path):
    sizes = {"width": 16, "num_heads": 2, "num_points": 2, "feedforward_dim": 16, "num_queries": 5}
    transformer = TransformerConfig(**sizes, encoder_layers=1, decoder_layers=1)
    torch.manual_seed(0)
    model = LastLayer(
        build_model(ModelConfig(3, backbone=BackboneConfig(channels=(8, 8, 16, 16)), transformer=transformer))
    )
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 48:] = True
    file = tmp_path / "detector.onnx"
    exported = to_onnx(model, (torch.rand(2, 3, 64, 96), mask), file, form=form, metadata={"classes": "a"})
    images, padding = exported.inputs["images"], exported.inputs["padding_mask"]
    assert all(isinstance(size, str) for size in (images[0], *images[2:], *padding))
    assert {each.key: each.value for each in onnx.load(file).metadata_props}["classes"] == "a"
    other = torch.rand(1, 3, 75, 101), torch.zeros(1, 75, 101, dtype=torch.bool)
    with torch.no_grad():
        expected = model.eval()(*other)
    for actual, tensor in zip(run_file(file, other).values(), expected, strict=True):
        torch.testing.assert_close(actual, tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_the_exporter_of_torch_writes_gridsample_without_any_help(tmp_path):
    torch.manual_seed(0)
    attention = DeformableAttention(8, num_heads=2, num_points=3).eval()
    arguments = torch.randn(2, 3, 8), torch.rand(2, 3, 2), torch.randn(2, 8, 4, 5)
    file = tmp_path / "attention.onnx"
    with torch.no_grad():
        torch.onnx.export(attention, arguments, file, dynamo=True, verbose=False)
        expected = attention(*arguments)
    assert "GridSample" in {node.op_type for node in onnx.load(file).graph.node}
    (actual,) = run_file(file, arguments).values()
    torch.testing.assert_close(actual, expected)
