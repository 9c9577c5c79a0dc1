"""Two epochs on digits of a detector with the original's module: with an extension in torch, the stand-in, patched."""

import warnings

import pytest
import torch
from doubles import loading
from torch import nn

from deform_attn import MultiScaleDeformableAttention, patch
from deform_attn.detr.config.detector import ModelConfig, TrainConfig, TransformerConfig
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.model.attention import DeformableFeatureAttention
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.training.engine import train_one_epoch
from deform_attn.detr.training.learner import LOSSES, Learner
from deform_attn.detr.training.processes import start_processes

CONFIG = ModelConfig(10, transformer=TransformerConfig(width=32, encoder_layers=1, decoder_layers=2, num_queries=12))
TRAINING = TrainConfig(epochs=2, batch_size=8, warmup_steps=4)
ATTENTIONS = 3
# Of models in float64; the losses are noted in float32. In float32 eight steps make a percent of what rounding differs.
RELATIVE = 1e-5


class AsOurs(nn.Module):
    """A module of the original in the place of ours, which is called by other names and with sizes as pairs."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, query, reference_points, features, spatial_shapes, *, padding_mask):
        shapes = torch.tensor(spatial_shapes)
        starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
        if reference_points.ndim == 3:
            reference_points = reference_points[:, :, None].expand(-1, -1, len(shapes), -1)
        return self.attention(query, reference_points, features, shapes, starts, padding_mask)


def detector(original):
    """Return a detector whose attentions are those of the original, started alike each time."""
    torch.manual_seed(0)
    model = build_model(CONFIG)
    for place in [module for module in model.modules() if isinstance(module, DeformableFeatureAttention)]:
        ours = place.attention
        assert isinstance(ours, MultiScaleDeformableAttention)
        theirs = original(ours.embed_dim, len(ours.num_points), ours.num_heads, ours.num_points[0])
        theirs.load_state_dict(ours.state_dict())
        with torch.no_grad():  # off the pixels' centres, where two correct formulas may take the slope of either side
            theirs.sampling_offsets.bias += 0.3 * torch.randn_like(theirs.sampling_offsets.bias)
        place.attention = AsOurs(theirs)
    model.register_forward_pre_hook(lambda module, args: (args[0].double(), *args[1:]))
    return model.double()


def losses_of(model):
    """Return the mean losses of two epochs `[2, 4]`."""
    scenes = DigitScenes("train", 32, size=96)
    with start_processes(model, TRAINING.precision) as processes:
        learner = Learner(model, TRAINING, processes)
        means = [train_one_epoch(learner, scenes, epoch) for epoch in range(TRAINING.epochs)]
    return torch.tensor([[mean[name] for name in LOSSES] for mean in means])


@pytest.mark.slow
def test_two_epochs_on_digits_lose_the_same_with_an_op_in_torch_the_stand_in_and_patched(monkeypatch, one_thread):
    import deform_attn.stand_ins  # noqa: F401  (an import further up would warn in all of these tests)

    expected = losses_of(detector(loading.load(monkeypatch, "deformable_detr").MSDeformAttn))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what stands in
        original = loading.load(monkeypatch, "deformable_detr", None).MSDeformAttn
    stood_in = losses_of(detector(original))
    patched = detector(loading.load(monkeypatch, "deformable_detr", loading.uncompiled).MSDeformAttn)
    assert len(patch(patched).replaced) == ATTENTIONS
    torch.testing.assert_close(stood_in, expected, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(losses_of(patched), expected, rtol=RELATIVE, atol=0)


@pytest.mark.slow
def test_the_losses_show_an_attention_that_looks_elsewhere(monkeypatch, one_thread):
    original = loading.load(monkeypatch, "deformable_detr").MSDeformAttn
    expected, changed = losses_of(detector(original)), detector(original)
    for attention in [module for module in changed.modules() if isinstance(module, original)]:
        attention.register_forward_pre_hook(lambda module, args: (args[0], args[1] + 0.02, *args[2:]))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(losses_of(changed), expected, rtol=10 * RELATIVE, atol=0)
