import copy
import functools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import original_repository
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.models.deformable_detr import modeling_deformable_detr as stock_code

from deform_attn.detr.checkpoints.checkpoint import load_model, save
from deform_attn.detr.checkpoints.exchange import load_original, load_transformers, save_original, save_transformers
from deform_attn.detr.checkpoints.published import published
from deform_attn.detr.config.detector import BackboneConfig, LossConfig, ModelConfig, TransformerConfig
from deform_attn.detr.data.base import Category
from deform_attn.detr.data.batch import Sample, collate
from deform_attn.detr.errors import CheckpointError, ConfigError
from deform_attn.detr.model.deformable_detr import DeformableDetr, Output, build_model
from deform_attn.detr.model.detector import Detector
from deform_attn.detr.training.criterion import Criterion

VARIANTS = [(True, True), (False, True), (False, False)]  # transformers has no two-stage detector without refinement
RESNET: dict[str, Any] = {  # not narrower, for the reason given in test_detr_model.py
    "model_type": "resnet",
    "embedding_size": 6,
    "hidden_sizes": [16, 20, 24, 28],
    "depths": [1, 1, 2, 1],
    "layer_type": "bottleneck",
    "out_features": ["stage2", "stage3", "stage4"],
}
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "image_size": 64,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "out_features": ["stage2", "stage3", "stage4"],
}
FIELDS: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_queries": 7, "two_stage_num_proposals": 7, "num_labels": 5,
    "auxiliary_loss": True, "tie_word_embeddings": False,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "width": 32, "heads": 4, "feedforward": 24, "encoder": 2, "decoder": 3, "queries": 7, "classes": 5, "stem": 6,
    "widths": (8, 12, 16, 20), "depths": (1, 1, 2, 1),
}  # fmt: skip


def stock(
    two_stage: bool = True, refine: bool = True, backbone: Mapping[str, Any] = RESNET, **fields: Any
) -> DeformableDetrForObjectDetection:
    """Return a model of transformers, every parameter and statistic redrawn, both copies of its heads alike."""
    settings = {**FIELDS, "two_stage": two_stage, "with_box_refine": refine, **fields}
    model = DeformableDetrForObjectDetection(DeformableDetrConfig(backbone_config=dict(backbone), **settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.2, 0.6)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.15)
        for kind in ("class_embed", "bbox_embed"):
            if getattr(model.model.decoder, kind) is not None:
                getattr(model.model.decoder, kind).load_state_dict(getattr(model, kind).state_dict())
    return model


def converted(model: DeformableDetrForObjectDetection, folder: Path) -> DeformableDetr:
    model.save_pretrained(folder)
    return load_transformers(folder).model


def batch(height: int, width: int, dtype: torch.dtype, valid: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
    """Return two pictures and, if `valid` (H, W) is given, a mask that leaves so much to the second one."""
    torch.manual_seed(2)
    images = torch.rand(2, 3, height, width, dtype=dtype)
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    if valid is not None:
        mask[1, valid[0] :], mask[1, :, valid[1] :] = True, True
    return images, None if valid is None else mask


def of_stock(
    model: DeformableDetrForObjectDetection, ours: DeformableDetr, images: Tensor, mask: Tensor | None
) -> tuple[list[Tensor], Any]:
    """Return logits and boxes of every layer of the stock model, and its output, for pictures in [0, 1]."""
    pixels = (images - ours.mean) / ours.std
    if mask is not None:
        pixels = pixels.masked_fill(mask[:, None], 0)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.full((1, 4), 0.3, dtype=images.dtype)}] * len(images)
    with torch.no_grad():
        output = model(pixels, pixel_mask=None if mask is None else (~mask).long(), labels=labels)
    layers = [*(output.auxiliary_outputs or []), {"logits": output.logits, "pred_boxes": output.pred_boxes}]
    return [layer[name] for layer in layers for name in ("logits", "pred_boxes")], output


def of_ours(output: Output) -> list[Tensor]:
    return [tensor for layer in (*output.auxiliary, (output.logits, output.boxes)) for tensor in layer]


def apart(first: list[Tensor], second: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest number of each tensor."""
    assert len(first) == len(second)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(first, second, strict=True))


Pair = tuple[DeformableDetrForObjectDetection, DeformableDetr]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool, bool], Pair]:
    """Return a function that gives copies of a stock model and of ours with its weights, built once a variant."""

    @functools.cache
    def built(two_stage: bool, refine: bool) -> Pair:
        model = stock(two_stage, refine)
        return model, converted(model, tmp_path_factory.mktemp("stock"))

    return lambda two_stage, refine: copy.deepcopy(built(two_stage, refine))


@pytest.mark.parametrize(("two_stage", "refine"), VARIANTS)
def test_the_stock_model_with_redrawn_weights_depends_on_its_deformable_attention(
    two_stage: bool, refine: bool, pair: Callable[[bool, bool], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ours = pair(two_stage, refine)
    images, _ = batch(167, 203, torch.float32, None)
    before, _ = of_stock(model, ours, images, None)
    blank_attention(monkeypatch)
    after, _ = of_stock(model, ours, images, None)
    assert apart(after, before) > 1e-2


def encode_boxes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stock model encode its proposals' boxes in its own dtype; as it is, it rounds them to float32."""

    def encode(self: Any, logits: Tensor) -> Tensor:
        width = self.config.d_model // 2
        channel = torch.arange(width)
        angles = logits.sigmoid()[..., None] * (2 * torch.pi) / 10000 ** (channel // 2 * 2 / width).to(logits.dtype)
        return torch.where(channel % 2 == 0, angles.sin(), angles.cos()).flatten(2)

    monkeypatch.setattr(stock_code.DeformableDetrModel, "get_proposal_pos_embed", encode)


def blank_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every deformable attention of the stock model find nothing."""
    monkeypatch.setattr(
        stock_code.MultiScaleDeformableAttention,
        "forward",
        lambda self, value, shapes, sizes, starts, locations, *_: value.new_zeros(
            value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]
        ),
    )


# Sides that no stride divides; maps more than 50 pixels wide have pixels whose proposals are outside (0.01, 0.99).
PICTURES = [((167, 203), None), ((167, 203), (101, 150)), ((40, 421), (33, 420)), ((64, 96), (64, 96))]


# Proposals are what only a two-stage detector has; the others are judged by two of the four.
@pytest.mark.parametrize(
    ("two_stage", "refine", "size", "valid"),
    [(*variant, *pictures) for variant in VARIANTS for pictures in PICTURES[0 if variant[0] else 2 :]],
    ids=str,
)
def test_every_layer_predicts_what_the_stock_model_predicts(
    two_stage: bool,
    refine: bool,
    size: tuple[int, int],
    valid: tuple[int, int] | None,
    pair: Callable[[bool, bool], Pair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ours = pair(two_stage, refine)
    images, mask = batch(*size, torch.float32, valid)
    single, _ = of_stock(model, ours, images, mask)
    found = of_ours(ours(images, mask))
    model, ours, images = model.double(), ours.double(), images.double()
    rounded, _ = of_stock(model, ours, images, mask)
    prediction = ours(images, mask)
    assert apart(of_ours(prediction), rounded) < 1e-7  # the stock model's rounding of boxes, see below
    encode_boxes_exactly(monkeypatch)
    exact, output = of_stock(model, ours, images, mask)
    assert len(exact) == 2 * 3
    assert apart(of_ours(prediction), exact) < 1e-13
    # In float32 the two stay together as closely as its own roundings let the stock model come to float64.
    rounding = apart(single, exact)
    assert rounding < 1e-5
    assert apart(found, single) < 1e-6 + 3 * rounding
    if two_stage:
        best = output.enc_outputs_class[..., 0].topk(7)
        assert prediction.encoder is not None
        torch.testing.assert_close(prediction.encoder.logits[..., 0], best.values, rtol=0, atol=1e-12)
        torch.testing.assert_close(prediction.encoder.boxes, output.init_reference_points, rtol=0, atol=1e-12)


@pytest.mark.parametrize("valid", [None, (33, 420)], ids=str)
def test_blank_proposals_become_the_same_queries(
    valid: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_boxes_exactly(monkeypatch)
    images, mask = batch(40, 421, torch.float64, valid)
    pixels = 5 * 53 + 3 * 27 + 2 * 14 + 1 * 7  # all of them, those near the rim and the padded ones included
    model = stock(two_stage_num_proposals=pixels)
    ours = converted(model, tmp_path).double()
    exact, output = of_stock(model.double(), ours, images, mask)
    assert (output.init_reference_points == 1).all(-1).any()
    assert apart(of_ours(ours(images, mask)), exact) < 1e-13


def test_a_single_level_predicts_what_the_stock_model_predicts(tmp_path: Path) -> None:
    backbone = {**RESNET, "out_features": ["stage4"]}
    model = stock(False, True, backbone, num_feature_levels=1)
    ours = converted(model, tmp_path).double()
    assert ours.config.strides == (32,)
    images, mask = batch(167, 203, torch.float64, (101, 150))
    assert apart(of_ours(ours(images, mask)), of_stock(model.double(), ours, images, mask)[0]) < 1e-13


def same_state(first: DeformableDetr, second: DeformableDetr) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("two_stage", "refine", "tied"), [(*variant, variant[1]) for variant in VARIANTS] + [(True, True, False)]
)
def test_weights_come_back_from_transformers_bit_by_bit(
    two_stage: bool, refine: bool, tied: bool, tmp_path: Path
) -> None:
    model = stock(two_stage, refine, tie_word_embeddings=tied)
    names = {i: f"thing {i}" for i in range(5)}
    model.config.id2label, model.config.label2id = names, {name: i for i, name in names.items()}
    model.save_pretrained(tmp_path / "stock")
    detector = load_model(tmp_path / "stock")
    assert detector.categories == tuple(Category(i, name) for i, name in names.items())
    assert not detector.model.training
    detector = replace(detector, categories=tuple(Category(10 * i, f"thing {i}") for i in range(5)), max_size=320)
    save_transformers(tmp_path / "ours", detector)
    again = load_model(tmp_path / "ours")
    assert same_state(detector.model, again.model)
    assert (again.model.config, again.categories, again.max_size) == (
        detector.model.config,
        detector.categories,
        detector.max_size,
    )
    reloaded = DeformableDetrForObjectDetection.from_pretrained(tmp_path / "ours").eval()
    assert reloaded.config.id2label == names
    states = model.state_dict(), reloaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    images, mask = batch(167, 203, torch.float32, (101, 150))
    after = of_stock(reloaded, again.model, images, mask)[0]
    assert all(map(torch.equal, after, of_stock(model, again.model, images, mask)[0][-2:]))


def test_a_trained_detector_without_refinement_keeps_its_heads_in_transformers(tmp_path: Path) -> None:
    model = build_model(published(5, two_stage=False, refine=False, backbone=RESNET, transformer=SMALL)).eval()
    redraw(model)
    save_transformers(tmp_path, Detector(model, tuple(Category(i, str(i)) for i in range(5))))
    reloaded = DeformableDetrForObjectDetection.from_pretrained(tmp_path).eval().double()
    images, mask = batch(167, 203, torch.float64, (101, 150))
    model = model.double()
    pixels = ((images - model.mean) / model.std).masked_fill(mask[:, None], 0)  # type: ignore[index]
    with torch.no_grad():
        expected = reloaded(pixels, pixel_mask=(~mask).long())  # type: ignore[operator]
    output = model(images, mask)
    assert apart([output.logits, output.boxes], [expected.logits, expected.pred_boxes]) < 1e-13


def test_weights_in_several_files_load(tmp_path: Path) -> None:
    model = stock()
    whole = converted(model, tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert same_state(whole, load_transformers(tmp_path / "parts").model)


def test_a_checkpoint_of_transformers_4_with_a_backbone_of_timm_loads(tmp_path: Path) -> None:
    backbone = {**RESNET, "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    model = stock(True, True, {**backbone, "layer_type": "basic"})
    expected = converted(model, tmp_path / "new")
    old = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"^model\.backbone\.model\.", "model.backbone.conv_encoder.model.", name)
        name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        for stage in range(4):
            name = name.replace(f"encoder.stages.{stage}.layers.", f"layer{stage + 1}.")
        for part in range(2):
            name = name.replace(f".layer.{part}.convolution", f".conv{part + 1}")
            name = name.replace(f".layer.{part}.normalization", f".bn{part + 1}")
        name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        name = name.replace(".self_attn.o_proj.", ".self_attn.out_proj.").replace(".mlp.fc", ".fc")
        if not name.startswith("model.decoder.class_embed"):  # one of two copies, as such files often have it
            old[name] = tensor.clone()
        if name.endswith("running_var"):
            old[name.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    assert "model.backbone.conv_encoder.model.layer2.0.downsample.1.running_var" in old
    assert "model.decoder.layers.0.fc1.weight" in old
    save_file(old, make(tmp_path / "old") / "model.safetensors")
    config = model.config.to_dict()
    del config["backbone_config"]
    config |= {"use_timm_backbone": True, "backbone": "resnet18", "backbone_config": None}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    assert same_state(expected, load_model(tmp_path / "old").model)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


SMALL: dict[str, Any] = {
    "width": 32, "num_heads": 4, "feedforward_dim": 24, "encoder_layers": 2, "decoder_layers": 3, "num_queries": 7,
}  # fmt: skip


def redraw(model: DeformableDetr) -> None:
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone."):  # so few channels would all be below zero and stop the gradients
                parameter.normal_(std=0.15)


@pytest.mark.parametrize(("two_stage", "refine"), [*VARIANTS, (True, False)])
def test_a_file_of_the_authors_comes_back_bit_by_bit(two_stage: bool, refine: bool, tmp_path: Path) -> None:
    import argparse

    state = original_repository.state(two_stage=two_stage, refine=refine, **SIZES)
    arguments = argparse.Namespace(nheads=4, num_queries=7, dropout=0.2, dilation=False, device="cuda")
    torch.save({"model": state, "args": arguments, "epoch": 49}, tmp_path / "theirs.pth")
    detector = load_model(tmp_path / "theirs.pth")
    transformer = detector.model.config.transformer
    assert (transformer.num_heads, transformer.num_points, transformer.dropout) == (4, 4, 0.2)
    assert (transformer.num_queries, transformer.two_stage, transformer.refine) == (7, two_stage, refine)
    assert [category.name for category in detector.categories] == ["0", "1", "2", "3", "4"]
    save_original(tmp_path / "ours.pth", detector)
    saved = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    assert saved.keys() == state.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in state.items())
    again = load_original(tmp_path / "ours.pth")
    assert again.model.config == detector.model.config
    assert same_state(detector.model, again.model)


@pytest.mark.parametrize(
    ("kind", "strides"),
    [("basic", (32,)), ("bottleneck", (32,)), ("basic", (8, 16, 32)), ("bottleneck", (16, 32, 64, 128))],
    ids=str,
)
def test_other_resnets_and_levels_come_back_bit_by_bit(kind: str, strides: tuple[int, ...], tmp_path: Path) -> None:
    config = published(5, backbone={**RESNET, "layer_type": kind}, strides=strides, transformer=SMALL)
    detector = Detector(build_model(config).eval(), tuple(Category(i, str(i)) for i in range(5)), max_size=800)
    save(tmp_path / "ours", detector)
    save_transformers(tmp_path / "transformers", detector)
    save_original(tmp_path / "authors.pth", detector)
    for name in ("ours", "transformers", "authors.pth"):
        again = load_model(tmp_path / name)
        assert same_state(detector.model, again.model)
        assert again.model.config.transformer == config.transformer
        assert again.model.config.strides == strides
        assert again.categories == detector.categories
        assert again.max_size == (None if name == "authors.pth" else 800)
        torch.testing.assert_close(again.model(PICTURE).logits, detector.model(PICTURE).logits, rtol=0, atol=0)


PICTURE = torch.rand(1, 3, 167, 203, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("two_stage", [True, False])
def test_each_tensor_of_the_authors_has_its_role_in_transformers(two_stage: bool, tmp_path: Path) -> None:
    state = original_repository.state(two_stage=two_stage, refine=True, **SIZES)
    torch.save({"model": state, "args": {"nheads": 4, "num_queries": 7}}, tmp_path / "theirs.pth")
    save_transformers(tmp_path / "converted", load_original(tmp_path / "theirs.pth"))
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    roles = {theirs: name for theirs, name in original_repository.ROLES.items() if theirs in state}
    assert len(roles) > 24
    for theirs, name in roles.items():
        assert torch.equal(state[theirs], converted[name]), theirs
    joint = state["transformer.decoder.layers.1.self_attn.in_proj_weight"]
    for i, part in enumerate("qkv"):
        split = converted[f"model.decoder.layers.1.self_attn.{part}_proj.weight"]
        assert torch.equal(joint[32 * i : 32 * (i + 1)], split)
    DeformableDetrForObjectDetection.from_pretrained(tmp_path / "converted")


Change = tuple[str, Tensor | None]
WRONG: list[tuple[Change, str]] = [
    (("model.pos_trans.weight", None), r"lacks tensor model\.pos_trans\.weight"),
    (("class_embed.2.bias", None), r"lacks tensor class_embed\.2\.bias"),
    (
        ("model.decoder.layers.1.self_attn.k_proj.bias", None),
        r"lacks tensor model\.decoder\.layers\.1\.self_attn\.k_proj",
    ),
    (("model.decoder.norm.weight", torch.ones(3)), r"unknown tensor model\.decoder\.norm\.weight"),
    (("model.level_embed", torch.ones(4, 31)), r"tensor model\.level_embed is \[4, 31\], expected \[4, 32\]"),
    (
        ("model.decoder.layers.0.self_attn.v_proj.bias", torch.ones(33)),
        r"self_attn\.v_proj\.bias is \[33\], expected \[32\]",
    ),
    (("model.decoder.class_embed.1.bias", torch.ones(5)), r"class_embed\.1\.bias differs from its copy"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of transformers, for tests that copy it."""
    folder = tmp_path_factory.mktemp("saved")
    stock().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[change[0] for change, _ in WRONG])
def test_a_wrong_tensor_is_named(change: Change, message: str, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name, tensor = change
    for either in (name, f"model.decoder.{name}"):
        tensors.pop(either, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("backbone.0.body.layer2.0.bn2.running_var", None),
            r"lacks tensor backbone\.0\.body\.layer2\.0\.bn2\.running_var",
        ),
        (("bbox_embed.3.layers.1.bias", torch.ones(32)), r"bbox_embed\.3\.layers\.1\.bias differs from its copy"),
        (("label_enc.weight", torch.ones(5, 32)), r"unknown tensor label_enc\.weight"),
        (("input_proj.1.1.bias", torch.ones(31)), r"tensor input_proj\.1\.1\.bias is \[31\], expected \[32\]"),
    ],
    ids=["missing", "unlike its copy", "unknown", "shape"],
)
def test_a_wrong_tensor_of_the_authors_is_named(change: Change, message: str, tmp_path: Path) -> None:
    state = original_repository.state(two_stage=True, refine=True, **SIZES)
    name, tensor = change
    state.pop(name, None)
    if tensor is not None:
        state[name] = tensor
    torch.save({"model": state, "args": {"nheads": 4, "num_queries": 7}}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(tmp_path / "file.pth")
    assert str(tmp_path / "file.pth") in str(caught.value)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"position_embedding_type": "learned"}, "position_embedding_type: 'learned' is not supported, only 'sine'"),
    ({"dilation": True}, "dilation: True is not supported"),
    ({"activation_function": "gelu"}, "activation_function: 'gelu' is not supported"),
    ({"decoder_n_points": 2}, "encoder_n_points: 4 and decoder_n_points 2 must be the same"),
    (
        {"backbone_config": None, "backbone": "convnext_tiny"},
        "backbone: 'convnext_tiny' is not supported, only resnet18",
    ),
    ({"backbone_config": SWIN}, "backbone_config: 'swin' is not supported, only 'resnet' and timm's ResNets"),
    ({"backbone_config": {**RESNET, "out_features": ["stem", "stage4"]}}, r"out_features \['stem', 'stage4'\]"),
    ({"num_feature_levels": 2}, "out_features .* are not 2 levels or fewer"),
    ({"d_model": "wide"}, "not a configuration of transformers' Deformable DETR"),
    ({"d_model": 48}, "norm_groups: must divide the width, 48, got 32"),
]


@pytest.mark.parametrize(("change", "message"), OPTIONS, ids=[next(iter(change)) for change, _ in OPTIONS])
def test_an_option_that_a_detector_does_not_have_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = DeformableDetrConfig(
        backbone_config=dict(RESNET), **FIELDS, two_stage=True, with_box_refine=True
    ).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match=message):
        load_transformers(tmp_path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(CheckpointError, match="model_type is 'detr', expected 'deformable_detr'"):
        load_model(tmp_path)
    stock().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../y.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"index\.json: damaged"):
        load_model(tmp_path)
    file = tmp_path / "file.pth"
    for content in (b"", b"text", b"PK\x03\x04"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged, or not a file of torch\.save"):
            load_model(file)
    torch.save({"model": {"class_embed.0.weight": 1}}, file)
    with pytest.raises(CheckpointError, match="no state of a model under 'model'"):
        load_model(file)
    torch.save({"model": {}, "args": {"dilation": True}}, file)
    with pytest.raises(ConfigError, match=r"file\.pth: dilation: True is not supported"):
        load_model(file)
    torch.save({"model": {}, "args": [8]}, file)
    with pytest.raises(CheckpointError, match=r"'args' must be the options of a training, got list"):
        load_model(file)
    state = original_repository.state(two_stage=True, refine=True, **SIZES)
    for name, value in (("nheads", "eight"), ("num_queries", "many")):
        torch.save({"model": state, "args": {name: value}}, file)
        with pytest.raises(ConfigError, match=rf"file\.pth: .*{name}: expected .*, got '{value}'"):
            load_model(file)
    torch.save({"model": state, "args": {"nheads": 3}}, file)
    with pytest.raises(ConfigError, match="width: 32 is not a multiple of num_heads 3"):
        load_model(file)
    torch.save({"model": {}}, file)
    with pytest.raises(CheckpointError, match=r"file\.pth: lacks tensor backbone\.0\.body\.layer1\.0\.conv2\.weight"):
        load_model(file)


class Spy:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("executed",))


def test_nothing_in_a_file_of_the_authors_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {}, "spy": Spy()}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save with tensors alone"):
        load_model(tmp_path / "file.pth")
    assert capsys.readouterr().out == ""


def small(**fields: Any) -> Detector:
    stages = {name: fields.pop(name) for name in ("two_stage", "refine") if name in fields}
    config = published(5, backbone=RESNET, transformer=SMALL | fields, **stages)
    return Detector(build_model(config).eval(), tuple(Category(i, str(i)) for i in range(5)))


UNPUBLISHED: list[tuple[ModelConfig, str]] = [
    (ModelConfig(5), "exact_padding: expected False, .* got True"),
    (replace(published(5, backbone=RESNET, transformer=SMALL), norm_groups=None), "norm_groups: expected 32, .* None"),
    (
        replace(published(5, backbone=RESNET, transformer=SMALL), backbone=BackboneConfig(norm="frozen")),
        r"backbone\.name: expected 'transformers', .* got 'small'",
    ),
    (published(5, backbone=SWIN, transformer=SMALL), r"backbone\.source: expected a ResNet"),
    (
        published(5, backbone=RESNET, transformer=SMALL | {"position_periods": 4}),
        r"transformer\.position_periods: expected 1\.0, .* got 4\.0",
    ),
]


@pytest.mark.parametrize(("config", "message"), UNPUBLISHED, ids=[message for _, message in UNPUBLISHED])
def test_a_detector_that_is_not_the_published_one_says_by_which_field(
    config: ModelConfig, message: str, tmp_path: Path
) -> None:
    detector = Detector(build_model(config), tuple(Category(i, str(i)) for i in range(5)))
    for save_there in (save_transformers, save_original):
        with pytest.raises(ConfigError, match=message):
            save_there(tmp_path / "there", detector)
    assert not (tmp_path / "there").exists()


def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no two-stage detector without refinement"):
        save_transformers(tmp_path / "there", small(refine=False))
    shared = small(two_stage=False, refine=False)
    torch.nn.init.ones_(shared.model.transformer.decoder.class_heads[2].bias)
    with pytest.raises(CheckpointError, match=r"tensor class_embed\.[12]\.\w+ differs from the first layer's"):
        save_original(tmp_path / "there.pth", shared)
    save(tmp_path / "ours", shared)
    with pytest.raises(CheckpointError, match="of another model and would be replaced"):
        save_transformers(tmp_path / "ours", shared)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def training_batch(*sizes: tuple[int, int]) -> list[Sample]:
    torch.manual_seed(5)
    boxes = torch.cat((torch.rand(3, 2) * 0.6 + 0.2, torch.rand(3, 2) * 0.2 + 0.1), dim=-1)
    return [Sample(torch.rand(3, *size), boxes, torch.tensor([1, 4, 2]), 0, size) for size in sizes]


@pytest.mark.parametrize(("two_stage", "refine"), [*VARIANTS, (True, False)])
def test_training_reaches_every_parameter_that_is_not_frozen(two_stage: bool, refine: bool) -> None:
    model = small(two_stage=two_stage, refine=refine).model.train()
    redraw(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters()
        if name.startswith(("backbone.network.embedder.", "backbone.network.encoder.stages.0."))
    }  # fmt: skip
    assert len(frozen) > 3
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    samples = collate(training_batch((167, 203), (101, 150)))
    Criterion(LossConfig())(model(samples.images, samples.padding_mask), samples.samples).total.backward()
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


def test_the_published_proposals_learn_objects_whatever_their_class() -> None:
    model = small().model
    redraw(model)
    samples = training_batch((167, 203))
    output = model(samples[0].image[None])
    assert output.encoder is not None
    assert output.encoder.logits.shape == (1, 7, 1)
    criterion = Criterion(LossConfig())
    encoder = replace(output, logits=output.encoder.logits, boxes=output.encoder.boxes, auxiliary=(), encoder=None)
    decoder = replace(output, encoder=None)
    objects = [replace_labels(samples[0], torch.zeros(3, dtype=torch.int64))]
    both, one, rest = criterion(output, samples), criterion(encoder, objects), criterion(decoder, samples)
    for term, first, second in zip(both, one, rest, strict=True):
        torch.testing.assert_close(term, first + second)


def replace_labels(sample: Sample, labels: Tensor) -> Sample:
    return Sample(sample.image, sample.boxes, labels, sample.image_id, sample.original_size)


def test_the_settings_of_the_authors_are_a_config_that_survives_json() -> None:
    config = published(91, two_stage=False, refine=False, transformer={"num_queries": 100})
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.transformer == replace(
        TransformerConfig(), width=256, num_heads=8, num_points=4, feedforward_dim=1024, encoder_layers=6,
        decoder_layers=6, num_queries=100, two_stage=False, refine=False, query_position="fixed", dropout=0.1,
        proposal_size=0.05, position_periods=1.0, position_temperature=10000.0,
    )  # fmt: skip


@pytest.mark.slow
def test_the_full_size_detector_predicts_what_the_stock_model_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}  # its defaults: ResNet-50
    settings = {"two_stage": True, "with_box_refine": True, "num_labels": 91, "auxiliary_loss": True}
    config = DeformableDetrConfig(backbone_config=backbone, tie_word_embeddings=False, **settings)
    model = DeformableDetrForObjectDetection(config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
            else:  # as large as keeps 16 blocks of residuals in range
                tensor.normal_(std=0.5 / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.15)
        for kind in ("class_embed", "bbox_embed"):
            getattr(model.model.decoder, kind).load_state_dict(getattr(model, kind).state_dict())
    ours = converted(model, tmp_path / "stock")
    transformer = ours.config.transformer
    assert (transformer.encoder_layers, transformer.decoder_layers, transformer.num_queries) == (6, 6, 300)
    assert ours.config == replace(published(91), backbone=ours.config.backbone)
    images, _ = batch(250, 333, torch.float64, None)
    images = images[:1]
    with torch.no_grad():
        encode_boxes_exactly(monkeypatch)
        # In float64: in float32 some of thousands of scores are so close that the best 300 come in another order.
        exact = of_stock(model.double(), ours.double(), images, None)[0]
        assert len(exact) == 2 * 6
        assert apart(of_ours(ours(images)), exact) < 1e-12
    blank_attention(monkeypatch)
    assert apart(of_stock(model, ours, images, None)[0], exact) > 1e-2
    ours = ours.float()
    detector = Detector(ours, tuple(Category(i, str(i)) for i in range(91)))
    save_original(tmp_path / "file.pth", detector)
    assert same_state(ours, load_original(tmp_path / "file.pth").model)
    samples = training_batch((250, 333))
    Criterion(LossConfig())(ours.train()(samples[0].image[None]), samples).total.backward()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
