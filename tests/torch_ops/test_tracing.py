"""torch.jit.trace, also as the old exporter to ONNX uses it: refused with what to use instead, unless it is right."""

import pytest
import torch

from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    deformable_attention,
    encoder_reference_points,
    multi_scale_deformable_attention,
    use_backend,
)
from deform_attn.detr.config.detector import BackboneConfig, ModelConfig, TransformerConfig
from deform_attn.detr.model.deformable_detr import build_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
]
REFUSED = r"^torch\.jit\.trace and .* cannot record .*torch\.export.*export\.to_onnx.*dynamo=True"
SHAPES = [(3, 4), (2, 2)]


class Call(torch.nn.Module):
    """A function or a method as a module, which alone torch.jit.trace takes with parameters."""

    def __init__(self, call, **modules):
        super().__init__()
        self.call = call
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *tensors):
        return self.call(*tensors)


def draw():
    torch.manual_seed(0)
    value, maps = torch.randn(2, 16, 2, 4), [torch.randn(2, 8, H, W) for H, W in SHAPES]
    locations, weights = torch.rand(2, 5, 2, 2, 3, 2), torch.rand(2, 5, 2, 2, 3)
    return value, maps, locations, weights, torch.rand(2, 5, 2), torch.randn(2, 5, 8)


def calls():
    """Return, by name, modules and their arguments."""
    value, maps, locations, weights, references, query = draw()
    several = MultiScaleDeformableAttention(8, num_heads=2, num_levels=2, num_points=3)
    single = DeformableAttention(8, num_heads=2, num_points=3)
    flat = torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2)

    def classic(value, locations, weights):
        return multi_scale_deformable_attention(value, SHAPES, locations, weights)

    def fused(value, references, offsets, logits):
        return deformable_attention(value, SHAPES, references, offsets, logits.flatten(3))

    def sized(value, locations, weights, *maps):
        return multi_scale_deformable_attention(value, [x.shape[2:] for x in maps], locations, weights)

    return {
        "classic": (Call(classic), (value, locations, weights)),
        "fused": (Call(fused), (value, references, locations, weights)),
        "module, flat": (Call(lambda q, r, f: several(q, r, f, SHAPES), several=several), (query, references, flat)),
        "classic, sizes of maps": (Call(sized), (value, locations, weights, *maps)),
        "module, maps": (Call(lambda q, r, *x: several(q, r, x), several=several), (query, references, *maps)),
        "module, one map": (single, (query, references, maps[0])),
        "encoder": (Call(lambda x: encoder_reference_points([x.shape[2:]])), (maps[0],)),
    }


FIXED = ["classic", "fused", "module, flat"]  # whose sizes are plain ints
# The kernels' counts of points must be plain ints, too.
RIGHT = [*[(name, "grid_sample") for name in FIXED], ("module, flat", "native")]


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        (name, backend)
        for name in calls()
        for backend in ("native", "reference", "grid_sample")
        if (name, backend) not in RIGHT
    ],
)
def test_a_call_that_torch_cannot_record_rightly_is_refused_with_what_to_use(name, backend):
    module, arguments = calls()[name]
    with use_backend(backend), pytest.raises(ValueError, match=REFUSED):
        torch.jit.trace(module, arguments)


@pytest.mark.parametrize(("name", "backend"), RIGHT)
def test_sizes_of_plain_ints_are_recorded_and_right_for_other_numbers(name, backend):
    module, arguments = calls()[name]
    with use_backend(backend):
        traced = torch.jit.trace(module, arguments)
    others = [tensor.flip(0, 1) * 0.7 for tensor in arguments]
    torch.testing.assert_close(traced(*others), module(*others))


@pytest.mark.parametrize("backend", ["native", "grid_sample"])
def test_what_was_recorded_refuses_maps_of_another_size(backend):
    module, (query, references, features) = calls()["module, flat"]
    with use_backend(backend):
        traced = torch.jit.trace(module, (query, references, features))
    with pytest.raises(RuntimeError):
        traced(query, references, features[:, :7])


@pytest.mark.parametrize("name", ["module, flat", "module, maps", "module, one map"])
def test_the_old_exporter_to_onnx_is_refused_with_what_to_use(name, tmp_path):
    module, arguments = calls()[name]
    with pytest.raises(ValueError, match=REFUSED):
        torch.onnx.export(module, arguments, tmp_path / "attention.onnx", dynamo=False)


def test_the_detector_is_refused_with_what_to_use():
    transformer = TransformerConfig(
        width=16, num_heads=2, num_points=2, feedforward_dim=16, encoder_layers=1, decoder_layers=1, num_queries=5
    )
    detector = build_model(
        ModelConfig(3, backbone=BackboneConfig(channels=(8, 8, 16, 16)), transformer=transformer)
    ).eval()
    with pytest.raises(ValueError, match=REFUSED):
        torch.jit.trace(detector, (torch.rand(1, 3, 64, 96),))
