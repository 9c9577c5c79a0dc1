"""The whole detector under torch.compile and torch.export."""

import io

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TransformerConfig
from deform_attn.detr.model.deformable_detr import DeformableDetr, Output, build_model

CONFIG = ModelConfig(
    3,
    backbone=BackboneConfig(channels=(8, 8, 16, 16)),
    transformer=TransformerConfig(
        width=16, num_heads=2, num_points=2, feedforward_dim=16, encoder_layers=1, decoder_layers=1, num_queries=5
    ),
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    torch._dynamo.reset()
    return build_model(CONFIG).eval()


def pictures(batch, height, width):
    """Return images and the mask of a batch whose last picture is narrower than the others."""
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    mask[-1, :, width - 24 :] = True
    return torch.rand(batch, 3, height, width), mask


def tensors(output: Output) -> list[Tensor]:
    """Return all that a detector predicts."""
    assert output.encoder is not None
    return [output.logits, output.boxes, *(part for layer in output.auxiliary for part in layer), *output.encoder]


@pytest.mark.slow
def test_the_compiled_detector_is_one_graph_and_needs_no_third_one_for_further_sizes(model):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for batch, height, width, graphs in ((2, 64, 96, 1), (3, 96, 128, 2), (4, 128, 64, 2), (5, 88, 120, 2)):
        images, mask = pictures(batch, height, width)
        with torch.no_grad():
            actual, expected = compiled(images, mask), model(images, mask)
        torch.testing.assert_close(tensors(actual), tensors(expected))
        assert counter.frame_count == graphs


def test_the_compiled_detector_has_the_gradients_of_the_eager_one(model):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    results = []
    for detector in (compiled, model):
        outputs = tensors(detector(*pictures_of_seed_one()))
        loss = sum((output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() for output in outputs)
        results.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    actual, expected = results
    assert any(grad is not None and grad.abs().max() > 0 for grad in expected)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def pictures_of_seed_one():
    torch.manual_seed(1)
    return pictures(2, 64, 96)


class Tuple(nn.Module):
    """The last layer's prediction of a detector as a plain tuple, which is what torch.export knows."""

    def __init__(self, detector: DeformableDetr) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and boxes."""
        output = self.detector(images, padding_mask)
        return output.logits, output.boxes


# torch 2.13 says so of weights in channels_last order, and saves them right all the same.
@pytest.mark.filterwarnings("ignore:No complete tensor found in the group")
@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_the_exported_detector_is_saved_loaded_and_right_for_other_sizes(model, strict):
    free = torch.export.Dim.AUTO
    dynamic = {0: free, 2: free, 3: free}, {0: free, 1: free, 2: free}
    with torch.no_grad():
        program = torch.export.export(Tuple(model), pictures(2, 64, 96), dynamic_shapes=dynamic, strict=strict)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for sizes in ((2, 64, 96), (3, 96, 128), (4, 120, 88)):
            images, mask = pictures(*sizes)
            expected = model(images, mask)
            torch.testing.assert_close(loaded(images, mask), (expected.logits, expected.boxes))
