"""Patched models of transformers as files of ONNX: small ones of four families, on other batches and sizes."""

import pytest
import torch

for package in ("onnx", "onnxscript", "onnxruntime", "transformers"):
    pytest.importorskip(package)

from onnx_cases import run_file  # noqa: E402

import interop_cases  # noqa: E402
from deform_attn import patch  # noqa: E402
from deform_attn.backends.native import registration  # noqa: E402
from deform_attn.export import forms, to_onnx  # noqa: E402
from deform_attn.export.verification import TOLERANCES, difference  # noqa: E402

H, W = interop_cases.H, interop_cases.W
# What differs from a case: fewer levels, so that a file is written sooner, and counts of points as a node pads them.
SMALLER = {
    "deformable_detr": {"backbone_config": interop_cases.resnet(2), "num_feature_levels": 2},
    "rt_detr_v2": {},
    "d_fine": {"decoder_n_points": [3, 6, 3]},
    "mask2former": {},
}
MASKED = {"deformable_detr"}


class Results(torch.nn.Module):
    """A patched model of a family with those of its outputs that depend on the op; its tensors come by position."""

    def __init__(self, family):
        super().__init__()
        self.model = interop_cases.build(family, **SMALLER[family])
        self.names = interop_cases.CASES[family].outputs
        assert patch(self.model).left == []

    def forward(self, pixel_values):
        output = self.model(pixel_values=pixel_values)
        return {name: output[name] for name in self.names}


class Masked(Results):
    """The same for padded images."""

    def forward(self, pixel_values, pixel_mask):
        output = self.model(pixel_values=pixel_values, pixel_mask=pixel_mask)
        return {name: output[name] for name in self.names}


def draw(family, batch, height, width):
    """Return the arguments of a family's model; the last image of several is padded where the family has a mask."""
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))
    mask = torch.ones(batch, height, width, dtype=torch.long)
    if batch > 1:
        mask[-1, 2 * height // 3 :] = 0
        mask[-1, :, 3 * width // 4 :] = 0
    return (images * mask[:, None], mask) if family in MASKED else (images,)


def written(family, form, file, dynamic=True):
    """Return a family's model and what `to_onnx` says of its file."""
    model = (Masked if family in MASKED else Results)(family)
    return model, to_onnx(model, draw(family, 2, H, W), file, form=form, dynamic=dynamic)


def assert_same(file, model, *arguments):
    """Judge a file in ONNX Runtime, with our operators, by its model."""
    with torch.no_grad():
        expected = model(*arguments)
    actual = run_file(file, arguments)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert difference(actual[name], tensor) <= TOLERANCES[torch.float32], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "form"),
    [("deformable_detr", "gather"), ("rt_detr_v2", "tensorrt"), ("d_fine", "tensorrt"), ("mask2former", "native")],
)
def test_a_patched_model_gives_the_same_as_a_file_for_other_batches_and_sizes(family, form, tmp_path):
    if not forms.FORMS[form].is_plain and registration.unavailable_reasons():
        pytest.skip("the CPU kernels are not built")
    model, exported = written(family, form, file := tmp_path / "model.onnx")
    images = exported.inputs["pixel_values"]
    assert all(isinstance(size, str) for size in (images[0], *images[2:]))
    for size in ((3, 64, 224), (1, 320, 96), (3, 160, 160)):
        assert_same(file, model, *draw(family, *size))
