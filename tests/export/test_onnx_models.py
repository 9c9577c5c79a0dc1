"""Whole models as files of ONNX: ours, patched models of transformers, and torch's own exporter."""

import json

import pytest
import torch

for package in ("onnx", "onnxscript", "onnxruntime", "transformers"):
    pytest.importorskip(package)

import onnx  # noqa: E402
from onnx_cases import run_file  # noqa: E402

import interop_cases  # noqa: E402
from deform_attn import DeformableAttention, patch  # noqa: E402
from deform_attn.backends.native import registration  # noqa: E402
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TransformerConfig  # noqa: E402
from deform_attn.detr.data.base import Category  # noqa: E402
from deform_attn.detr.model.deformable_detr import build_model  # noqa: E402
from deform_attn.detr.model.detector import Detector  # noqa: E402
from deform_attn.detr.prediction.onnx_model import METADATA, write_onnx  # noqa: E402
from deform_attn.export import forms, to_onnx  # noqa: E402

slow = pytest.mark.slow


class Results(torch.nn.Module):
    """A patched model of transformers with those of its outputs that depend on the op."""

    def __init__(self, name):
        super().__init__()
        self.model = interop_cases.build(name)
        self.names = interop_cases.CASES[name].outputs
        patch(self.model)

    def forward(self, pixel_values):
        output = self.model(pixel_values=pixel_values)
        return {name: output[name] for name in self.names}


@slow
def test_a_patched_model_is_written_and_gives_the_same(tmp_path):
    example = (interop_cases.CASES["rt_detr_v2"].inputs()["pixel_values"],)
    exported = to_onnx(Results("rt_detr_v2"), example, tmp_path / "model.onnx")
    assert exported.error < 1e-4
    N, _, *sides = exported.inputs["pixel_values"]
    assert all(isinstance(size, str) for size in (N, *sides))


@slow
@pytest.mark.parametrize("form", ["gridsample", "gather", "native", "tensorrt"])
def test_the_detector_is_written_for_any_batch_and_size_with_what_it_detects(form, tmp_path):
    if form == "native" and registration._library is None:
        pytest.skip("the CPU kernels are not built")
    sizes = {"width": 16, "num_heads": 2, "num_points": 2, "feedforward_dim": 16, "num_queries": 5}
    transformer = TransformerConfig(**sizes, encoder_layers=1, decoder_layers=1)
    torch.manual_seed(0)
    backbone = BackboneConfig(channels=(8, 8, 16, 16))
    model = build_model(ModelConfig(1, exact_padding=form != "tensorrt", backbone=backbone, transformer=transformer))
    file = tmp_path / "detector.onnx"
    exported = write_onnx(Detector(model, (Category(7, "ball"),), 640), file, form=form)
    images, padding = exported.inputs["images"], exported.inputs["padding_mask"]
    assert padding == (images[0], *images[2:])
    assert all(isinstance(size, str) for size in padding)
    assert list(exported.outputs) == ["logits", "boxes"]
    (said,) = [json.loads(each.value) for each in onnx.load(file).metadata_props if each.key == METADATA]
    assert said == {"categories": [{"id": 7, "name": "ball"}], "max_size": 640, "stride": 32}
    if forms.FORMS[form].runs_here:
        other = torch.rand(1, 3, 75, 101), torch.zeros(1, 75, 101, dtype=torch.bool)
        with torch.no_grad():
            expected = model.eval()(*other)
        for name, tensor in run_file(file, other).items():
            torch.testing.assert_close(tensor, getattr(expected, name), rtol=1e-4, atol=1e-4)


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
