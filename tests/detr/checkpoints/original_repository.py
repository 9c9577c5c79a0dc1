"""What the state of the authors' repository looks like: names, shapes, and what each part is for transformers."""

from typing import Any

import torch
from torch import Tensor


def _affine(names: dict[str, tuple[int, ...]], prefix: str, rows: int, *rest: int) -> None:
    names |= {f"{prefix}.weight": (rows, *rest), f"{prefix}.bias": (rows,)}


def shapes(
    *,
    two_stage: bool,
    refine: bool,
    width: int,
    heads: int,
    feedforward: int,
    encoder: int,
    decoder: int,
    queries: int,
    classes: int,
    stem: int,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    levels: int = 4,
    points: int = 4,
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its name, for a bottleneck ResNet of three feature levels and more."""
    names: dict[str, tuple[int, ...]] = {"transformer.level_embed": (levels, width)}

    def linear(prefix: str, rows: int, *columns: int) -> None:
        _affine(names, prefix, rows, *columns)

    def deformable(prefix: str) -> None:
        linear(f"{prefix}.sampling_offsets", heads * levels * points * 2, width)
        linear(f"{prefix}.attention_weights", heads * levels * points, width)
        linear(f"{prefix}.value_proj", width, width)
        linear(f"{prefix}.output_proj", width, width)

    def norm_and_conv(conv: str, norm: str, out: int, into: int, kernel: int) -> None:
        names[f"backbone.0.body.{conv}.weight"] = (out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            names[f"backbone.0.body.{norm}.{part}"] = (out,)

    for i in range(encoder):
        layer = f"transformer.encoder.layers.{i}"
        deformable(f"{layer}.self_attn")
        linear(f"{layer}.norm1", width)
        linear(f"{layer}.linear1", feedforward, width)
        linear(f"{layer}.linear2", width, feedforward)
        linear(f"{layer}.norm2", width)
    for i in range(decoder):
        layer = f"transformer.decoder.layers.{i}"
        deformable(f"{layer}.cross_attn")
        linear(f"{layer}.norm1", width)
        names[f"{layer}.self_attn.in_proj_weight"] = (3 * width, width)
        names[f"{layer}.self_attn.in_proj_bias"] = (3 * width,)
        linear(f"{layer}.self_attn.out_proj", width, width)
        linear(f"{layer}.norm2", width)
        linear(f"{layer}.linear1", feedforward, width)
        linear(f"{layer}.linear2", width, feedforward)
        linear(f"{layer}.norm3", width)
    if two_stage:
        linear("transformer.enc_output", width, width)
        linear("transformer.enc_output_norm", width)
        linear("transformer.pos_trans", 2 * width, 2 * width)
        linear("transformer.pos_trans_norm", 2 * width)
    else:
        linear("transformer.reference_points", 2, width)
        names["query_embed.weight"] = (queries, 2 * width)
    for i in range(decoder + two_stage):
        for prefix in ("", "transformer.decoder.") if two_stage else ("",):
            linear(f"{prefix}class_embed.{i}", classes, width)
        for prefix in ("", "transformer.decoder.") if refine else ("",):
            for k, rows in enumerate((width, width, 4)):
                linear(f"{prefix}bbox_embed.{i}.layers.{k}", rows, width)
    for i in range(levels):
        into, kernel = (widths[1 + i], 1) if i < 3 else (widths[3] if i == 3 else width, 3)
        linear(f"input_proj.{i}.0", width, into, kernel, kernel)
        linear(f"input_proj.{i}.1", width)
    norm_and_conv("conv1", "bn1", stem, 3, 7)
    before = stem
    for stage, (out, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for k in range(depth):
            block = f"layer{stage}.{k}"
            norm_and_conv(f"{block}.conv1", f"{block}.bn1", out // 4, before, 1)
            norm_and_conv(f"{block}.conv2", f"{block}.bn2", out // 4, out // 4, 3)
            norm_and_conv(f"{block}.conv3", f"{block}.bn3", out, out // 4, 1)
            if k == 0:
                norm_and_conv(f"{block}.downsample.0", f"{block}.downsample.1", out, before, 1)
            before = out
    return names


def state(**sizes: Any) -> dict[str, Tensor]:
    """Return a state with random tensors; second copies of the heads are equal, and without refinement so are all."""
    torch.manual_seed(3)
    tensors = {}
    for name, shape in shapes(**sizes).items():
        kind, _, rest = name.removeprefix("transformer.decoder.").partition(".")
        first = name
        if kind in ("class_embed", "bbox_embed"):
            number, _, rest = rest.partition(".")
            first = f"{kind}.{number if sizes['refine'] else 0}.{rest}"
        tensors[name] = tensors[first].clone() if first in tensors else torch.randn(shape) * 0.2
        if name.endswith("running_var"):
            tensors[name] = torch.rand(shape) * 0.4 + 0.2
    return tensors


# By what each part does in the forward passes of the two projects, not by our tables.
ROLES = {
    "transformer.level_embed": "model.level_embed",
    "transformer.encoder.layers.1.self_attn.value_proj.weight": "model.encoder.layers.1.self_attn.value_proj.weight",
    "transformer.encoder.layers.1.norm1.weight": "model.encoder.layers.1.self_attn_layer_norm.weight",
    "transformer.encoder.layers.1.linear1.bias": "model.encoder.layers.1.mlp.fc1.bias",
    "transformer.encoder.layers.1.linear2.bias": "model.encoder.layers.1.mlp.fc2.bias",
    "transformer.encoder.layers.1.norm2.bias": "model.encoder.layers.1.final_layer_norm.bias",
    "transformer.decoder.layers.1.self_attn.out_proj.weight": "model.decoder.layers.1.self_attn.o_proj.weight",
    "transformer.decoder.layers.1.norm2.weight": "model.decoder.layers.1.self_attn_layer_norm.weight",
    "transformer.decoder.layers.1.cross_attn.sampling_offsets.bias":
        "model.decoder.layers.1.encoder_attn.sampling_offsets.bias",
    "transformer.decoder.layers.1.cross_attn.attention_weights.weight":
        "model.decoder.layers.1.encoder_attn.attention_weights.weight",
    "transformer.decoder.layers.1.norm1.weight": "model.decoder.layers.1.encoder_attn_layer_norm.weight",
    "transformer.decoder.layers.1.linear1.weight": "model.decoder.layers.1.mlp.fc1.weight",
    "transformer.decoder.layers.1.linear2.weight": "model.decoder.layers.1.mlp.fc2.weight",
    "transformer.decoder.layers.1.norm3.weight": "model.decoder.layers.1.final_layer_norm.weight",
    "transformer.enc_output.weight": "model.enc_output.weight",
    "transformer.enc_output_norm.weight": "model.enc_output_norm.weight",
    "transformer.pos_trans.weight": "model.pos_trans.weight",
    "transformer.pos_trans_norm.bias": "model.pos_trans_norm.bias",
    "transformer.reference_points.weight": "model.reference_points.weight",
    "query_embed.weight": "model.query_position_embeddings.weight",
    "input_proj.3.0.weight": "model.input_proj.3.0.weight",
    "input_proj.3.1.bias": "model.input_proj.3.1.bias",
    "class_embed.1.bias": "class_embed.1.bias",
    "bbox_embed.1.layers.2.weight": "bbox_embed.1.layers.2.weight",
    "backbone.0.body.conv1.weight": "model.backbone.model.embedder.embedder.convolution.weight",
    "backbone.0.body.bn1.running_var": "model.backbone.model.embedder.embedder.normalization.running_var",
    "backbone.0.body.layer3.1.conv2.weight":
        "model.backbone.model.encoder.stages.2.layers.1.layer.1.convolution.weight",
    "backbone.0.body.layer3.1.bn2.running_mean":
        "model.backbone.model.encoder.stages.2.layers.1.layer.1.normalization.running_mean",
    "backbone.0.body.layer4.0.downsample.0.weight":
        "model.backbone.model.encoder.stages.3.layers.0.shortcut.convolution.weight",
    "backbone.0.body.layer4.0.downsample.1.bias":
        "model.backbone.model.encoder.stages.3.layers.0.shortcut.normalization.bias",
}  # fmt: skip
