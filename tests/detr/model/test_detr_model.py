from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deform_attn.detr.config.detector import AttentionKind, BackboneConfig, LossConfig, ModelConfig, TransformerConfig
from deform_attn.detr.data.batch import Sample, collate
from deform_attn.detr.model.deformable_detr import DeformableDetr, Output, build_model, postprocess
from deform_attn.detr.model.norm import FrozenBatchNorm, NormKind, PaddedGroupNorm, freeze_norms
from deform_attn.detr.model.pyramid import Pyramid
from deform_attn.detr.training.criterion import Criterion

KINDS: list[AttentionKind] = ["deformable", "deformable_single_scale", "dense"]
# At least 16 channels: with AVX-512 the oneDNN of torch 2.13.0 writes out of bounds in the backward pass of a 1 x 1
# convolution of stride 2 from fewer than 16 channels to at most 16, laid out channels_last.
RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 6,
    "hidden_sizes": [16, 20, 24, 28],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "image_size": 64,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
}


def tiny(attention: AttentionKind = "deformable", **settings: Any) -> ModelConfig:
    transformer = TransformerConfig(
        attention=attention, width=16, num_heads=2, num_points=3, feedforward_dim=24, encoder_layers=1,
        decoder_layers=2, num_queries=7,
    )  # fmt: skip
    fields = {name: settings.pop(name) for name in list(settings) if hasattr(transformer, name)}
    model = ModelConfig(5, backbone=BackboneConfig(channels=(6, 8, 10, 12)), transformer=replace(transformer, **fields))
    return replace(model, **settings)


def redrawn(config: ModelConfig) -> DeformableDetr:
    """At its initial values a model hardly depends on its attention, and its last box layers stop all gradients."""
    torch.manual_seed(0)
    model = build_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for name, buffer in model.backbone.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.2, 0.6)
    return model


def sample(height: int, width: int, boxes: int = 2) -> Sample:
    centre_form = torch.cat((torch.rand(boxes, 2) * 0.6 + 0.2, torch.rand(boxes, 2) * 0.2 + 0.1), dim=-1)
    labels = torch.randint(5, (boxes,))
    return Sample(torch.rand(3, height, width), centre_form, labels, 0, (height, width))


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("two_stage", [True, False])
@pytest.mark.parametrize("attention", KINDS)
def test_every_variant_predicts_and_its_gradients_reach_every_parameter(
    attention: AttentionKind, two_stage: bool, refine: bool
) -> None:
    model = redrawn(tiny(attention, two_stage=two_stage, refine=refine))
    batch = collate([sample(96, 64), sample(57, 90, boxes=3)])
    output = model(batch.images, batch.padding_mask)
    layers = [(output.logits, output.boxes), *output.auxiliary, *([output.encoder] if two_stage else [])]
    assert len(layers) == 2 + two_stage
    for logits, boxes in layers:
        assert logits.shape == (2, 7, 5)
        assert boxes.shape == (2, 7, 4)
        assert boxes.min() >= 0
        assert boxes.max() <= 1
    assert (output.encoder is not None) == two_stage
    Criterion(LossConfig())(output, batch.samples).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("two_stage", [True, False])
@pytest.mark.parametrize("attention", KINDS)
def test_padding_changes_nothing(attention: AttentionKind, two_stage: bool, norm: NormKind) -> None:
    backbone = BackboneConfig(channels=(8, 8, 16, 16), norm=norm)
    model = redrawn(tiny(attention, two_stage=two_stage, strides=(8, 16, 32), backbone=backbone)).eval()
    small, large = sample(70, 50), sample(96, 150)
    alone: Output = model(small.image[None])
    with_mask: Output = model(small.image[None], torch.zeros(1, 70, 50, dtype=torch.bool))
    batch = collate([large, small])
    assert batch.images.shape == (2, 3, 96, 160)
    padded: Output = model(batch.images, batch.padding_mask)
    batch.images[1][:, batch.padding_mask[1]] = 100.0  # whatever lies there
    filled: Output = model(batch.images, batch.padding_mask)
    for other in (with_mask, padded, filled):
        torch.testing.assert_close(other.logits[-1], alone.logits[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(other.boxes[-1], alone.boxes[0], rtol=0, atol=1e-5)
    ignored: Output = model(batch.images, None)  # the comparison does fail where the mask is ignored
    assert not torch.allclose(ignored.logits[1], alone.logits[0], rtol=0, atol=1e-4)


def pyramid_of(model: DeformableDetr, images: Tensor, mask: Tensor | None = None) -> Pyramid:
    seen: list[Pyramid] = []
    hook = model.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(images, mask)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("height", "width"), [(70, 50), (33, 95), (64, 96)])
def test_pixels_of_every_level_lie_where_their_stride_puts_them(height: int, width: int) -> None:
    model = redrawn(tiny(strides=(8, 16, 32))).eval()
    batch = collate([sample(96, 160), sample(height, width)])
    alone = pyramid_of(model, batch.images[1:, :, :height, :width])
    padded = pyramid_of(model, batch.images, batch.padding_mask)
    for pyramid in (alone, padded):
        start = 0
        for stride, (rows, columns) in zip((8, 16, 32), pyramid.spatial_shapes, strict=True):
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            expected = (torch.stack((x, y), dim=-1).flatten(0, 1) + 0.5) * stride / torch.tensor([width, height])
            actual = pyramid.centres[-1, start : start + rows * columns]
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
            start += rows * columns
        middle = torch.full((len(pyramid.centres), 1, 2), 0.5)
        references = pyramid.references(middle)[-1, 0]
        for (rows, columns), stride, reference in zip(
            pyramid.spatial_shapes, (8, 16, 32), references.expand(3, 2), strict=True
        ):
            pixels = reference * torch.tensor([columns, rows]) * stride
            torch.testing.assert_close(pixels, torch.tensor([width / 2, height / 2]))


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("two_stage", [True, False])
def test_coordinates_stay_float32_in_a_bfloat16_model(two_stage: bool, autocast: bool) -> None:
    model = redrawn(tiny(two_stage=two_stage)).eval()
    batch = collate([sample(96, 64), sample(57, 90)])
    expected = pyramid_of(model, batch.images, batch.padding_mask).centres
    images = batch.images
    if not autocast:
        model, images = model.bfloat16(), images.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = pyramid_of(model, images, batch.padding_mask).centres
        output = model(images, batch.padding_mask)
    assert torch.equal(actual, expected)
    for boxes in (output.boxes, *(prediction.boxes for prediction in output.auxiliary)):
        assert boxes.dtype == torch.float32
        assert boxes.isfinite().all()


def test_predictions_depend_on_the_attention() -> None:
    for attention in KINDS:
        model = redrawn(tiny(attention)).eval()
        images = torch.rand(1, 3, 64, 96)
        before: Tensor = model(images).logits
        for module in model.modules():
            if hasattr(module, "output_proj") or hasattr(module, "out_proj"):
                projection = getattr(module, "output_proj", None) or module.out_proj
                torch.nn.init.zeros_(projection.weight)
        assert (model(images).logits - before).abs().max() > 1e-2


@pytest.mark.parametrize(("source", "channels"), [(RESNET, (20, 24, 28)), (SWIN, (16, 32, 64))])
def test_backbones_of_transformers_offer_the_strides_asked_for(
    source: dict[str, Any], channels: tuple[int, ...]
) -> None:
    config = tiny(strides=(8, 16, 32, 64), backbone=BackboneConfig("transformers", source=source))
    model = redrawn(config)
    assert model.backbone.strides == (8, 16, 32)
    assert model.backbone.channels == channels
    batch = collate([sample(64, 96), sample(90, 60)])
    output = model(batch.images, batch.padding_mask)
    assert output.logits.shape == (2, 7, 5)
    Criterion(LossConfig())(output, batch.samples).total.backward()
    # Swin's last norm belongs to its classifier; a backbone has it and does not use it.
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle <= {f"backbone.network.swin.layernorm.{name}" for name in ("weight", "bias")}
    again = build_model(ModelConfig.from_dict(model.config.to_dict()))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(batch.images).logits, model.eval()(batch.images).logits)


def test_a_backbone_in_a_directory_brings_its_weights_and_is_not_needed_again(tmp_path: Any) -> None:
    from transformers import AutoBackbone, AutoConfig

    stored = AutoBackbone.from_config(AutoConfig.for_model(**RESNET))
    stored.save_pretrained(tmp_path)
    model = build_model(tiny(backbone=BackboneConfig("transformers", source=str(tmp_path))))
    torch.testing.assert_close(
        model.backbone.state_dict()["network.embedder.embedder.convolution.weight"],
        stored.state_dict()["embedder.embedder.convolution.weight"],
    )
    assert model.config.backbone.source is not None
    assert str(tmp_path) not in str(model.config.to_dict()["backbone"]["source"].get("out_features"))
    assert build_model(ModelConfig.from_dict(model.config.to_dict())).backbone.channels == model.backbone.channels


def test_a_backbone_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match="not a folder; pass a folder with configuration"):
        build_model(tiny(backbone=BackboneConfig("transformers", source="microsoft/resnet-50")))
    with pytest.raises(ValueError, match="model_type"):
        build_model(tiny(backbone=BackboneConfig("transformers", source={"depths": [1]})))


def test_strides_that_do_not_fit_the_backbone_are_refused() -> None:
    with pytest.raises(ValueError, match="must begin with strides of the backbone, which has none of them"):
        build_model(tiny(strides=(32, 64)))
    with pytest.raises(ValueError, match="twice the one before, got 64"):
        build_model(tiny(strides=(8, 16, 64)))


def test_the_full_size_model_of_the_paper_can_be_expressed() -> None:
    source = {"model_type": "resnet"}  # its defaults are ResNet-50's
    transformer = TransformerConfig(
        width=256, num_heads=8, feedforward_dim=1024, encoder_layers=6, decoder_layers=6, num_queries=300,
        dropout=0.1, proposal_size=0.05, position_periods=1, position_temperature=10000,
    )  # fmt: skip
    config = ModelConfig(91, (8, 16, 32, 64), backbone=BackboneConfig("transformers", source=source))
    with torch.device("meta"):
        model = build_model(replace(config, transformer=transformer))
        output = model.eval()(torch.zeros(2, 3, 480, 640))
    assert output.logits.shape == (2, 300, 91)
    assert 39e6 < sum(parameter.numel() for parameter in model.parameters()) < 42e6


def test_detections_are_the_best_pairs_of_query_and_class_in_pixels_of_the_original() -> None:
    logits = torch.tensor([[[0.0, 2.0, -9.0], [1.0, -3.0, -9.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.4, 0.4]]])
    found = postprocess(Output(logits, boxes, (), None), [(100, 200)], limit=3)[0]
    assert found.labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 1.0, 0.0]).sigmoid())
    expected = torch.tensor([[80.0, 30.0, 120.0, 70.0], [0.0, 70.0, 60.0, 100.0], [80.0, 30.0, 120.0, 70.0]])
    torch.testing.assert_close(found.boxes, expected)


@pytest.mark.parametrize(("queries", "expected"), [(30, 60), (90, 100), (250, 250)])
def test_as_many_detections_are_given_as_there_are_queries_and_100_at_least(queries, expected) -> None:
    output = Output(torch.zeros(1, queries, 2), torch.full((1, queries, 4), 0.5), (), None)
    assert len(postprocess(output, [(100, 200)])[0].scores) == expected


def test_detecting_leaves_the_model_in_its_mode_and_does_not_touch_its_statistics() -> None:
    model = redrawn(tiny())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    detections = model.detect(collate([sample(64, 40), sample(30, 64)]), limit=4)
    assert model.training
    assert [len(found.scores) for found in detections] == [4, 4]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_frozen_part_stays_frozen_after_detecting() -> None:
    model = redrawn(tiny())
    model.backbone.eval()
    model.detect(collate([sample(64, 40)]))
    assert model.training
    assert model.transformer.training
    assert not any(module.training for module in model.backbone.modules())


def test_detections_can_take_part_in_a_gradient() -> None:
    scores = redrawn(tiny()).detect(collate([sample(64, 40)]))[0].scores
    weight = torch.ones(1, requires_grad=True)
    (weight * scores).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_the_norm_of_features_far_from_zero_is_exact_in_every_dtype(dtype: torch.dtype, padded: bool) -> None:
    # Summed in bfloat16, 1,230 numbers near 100 give a mean that is off by several of their deviations.
    torch.manual_seed(0)
    features = (torch.randn(2, 16, 30, 41) + 100).to(dtype)
    mask = torch.zeros(2, 30, 41, dtype=torch.bool)
    mask[1, :, 33:] = padded
    norm = PaddedGroupNorm(4, 16).to(dtype)
    torch.nn.init.uniform_(norm.weight, 0.5, 1)
    torch.nn.init.uniform_(norm.bias)
    actual = norm(features, mask if padded else None)
    assert actual.dtype == dtype
    weight, bias = norm.weight.double(), norm.bias.double()
    for i, width in ((0, 41), (1, 33 if padded else 41)):
        picture = features[i : i + 1, :, :, :width].double()
        expected = torch.nn.functional.group_norm(picture, 4, weight, bias)
        # Once rounded, with sums in float32; float64 is as exact as it is.
        tolerance = 1e-10 if dtype == torch.float64 else torch.finfo(dtype).eps + 1e-4
        torch.testing.assert_close(actual[i : i + 1, :, :, :width].double(), expected, rtol=tolerance, atol=tolerance)
        assert not actual[i, :, :, width:].any()


def test_the_norm_keeps_the_features_dtype_beside_float32_weights() -> None:
    features, mask = torch.randn(1, 16, 5, 7).bfloat16(), torch.zeros(1, 5, 7, dtype=torch.bool)
    norm = PaddedGroupNorm(4, 16)
    assert norm(features, mask).dtype == norm(features).dtype == torch.bfloat16


def test_a_frozen_norm_is_the_one_it_replaces_in_evaluation_and_stays_so_in_training() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(12, eps=1e-3)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(tensor, 0.2, 0.9)
    network = torch.nn.Sequential(torch.nn.Sequential(norm))
    features = torch.randn(2, 12, 5, 7)
    expected = network.eval()(features)
    freeze_norms(network)
    assert isinstance(network[0][0], FrozenBatchNorm)
    assert list(network.parameters()) == []
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.testing.assert_close(network.train()(features), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_parts_of_a_backbone_that_are_frozen_do_not_learn() -> None:
    backbone = BackboneConfig(channels=(6, 8, 10, 12), norm="frozen", frozen=("stem", "stages.0.down"))
    model = redrawn(tiny(backbone=backbone))
    batch = collate([sample(96, 64)])
    Criterion(LossConfig())(model(batch.images, batch.padding_mask), batch.samples).total.backward()
    idle = {name for name, parameter in model.backbone.named_parameters() if parameter.grad is None}
    assert idle == {"stem.conv.weight", "stages.0.down.conv.weight"}
    with pytest.raises(
        ValueError, match=r"BackboneConfig\.frozen: 'stages\.9' has no parameters; some parts are stem\.conv"
    ):
        build_model(tiny(backbone=BackboneConfig(frozen=("stages.9",))))


def test_padding_that_is_not_exact_is_seen_by_the_convolutions() -> None:
    model = redrawn(tiny(exact_padding=False, query_position="fixed")).eval()
    small, large = sample(70, 50), sample(96, 150)
    batch = collate([large, small])
    alone, padded = model(small.image[None]), model(batch.images, batch.padding_mask)
    assert alone.logits.shape == (1, 7, 5)
    assert not torch.allclose(padded.logits[1], alone.logits[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("two_stage", [True, False])
def test_fixed_positions_work_in_bfloat16_with_boxes_in_float32(two_stage: bool, autocast: bool) -> None:
    model = redrawn(tiny(two_stage=two_stage, query_position="fixed", exact_padding=False)).eval()
    batch = collate([sample(96, 64), sample(57, 90)])
    images = batch.images
    if not autocast:
        model, images = model.bfloat16(), images.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(images, batch.padding_mask)
    for boxes in (output.boxes, *(prediction.boxes for prediction in output.auxiliary)):
        assert boxes.dtype == torch.float32
        assert boxes.isfinite().all()
