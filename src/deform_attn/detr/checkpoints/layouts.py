"""Layouts: what the tensors of a detector are called in other projects' checkpoints of Deformable DETR.

Each table has a row for each kind of tensor: the beginning of our name and of theirs; what follows is the same in both.
In ours `#` is a number; in theirs each `#` repeats the next one and `#+` is one more. `@` is how many decoder layers
there are, and `{q,k,v}` three tensors that are ours one after the other. Both directions read the same rows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deform_attn.detr.errors import CheckpointError

Rows = tuple[tuple[str, str], ...]

_HEADS: Rows = (
    ("transformer.decoder.class_heads.#.", "class_embed.#."),
    ("transformer.decoder.box_heads.#.mlp.0.", "bbox_embed.#.layers.0."),
    ("transformer.decoder.box_heads.#.mlp.2.", "bbox_embed.#.layers.1."),
    ("transformer.decoder.box_heads.#.mlp.4.", "bbox_embed.#.layers.2."),
    ("transformer.proposals.class_head.", "class_embed.@."),
    ("transformer.proposals.box_head.mlp.0.", "bbox_embed.@.layers.0."),
    ("transformer.proposals.box_head.mlp.2.", "bbox_embed.@.layers.1."),
    ("transformer.proposals.box_head.mlp.4.", "bbox_embed.@.layers.2."),
)

_TRANSFORMERS: Rows = (
    ("level_embedding", "model.level_embed"),
    ("projections.#.conv.", "model.input_proj.#.0."),
    ("projections.#.norm.", "model.input_proj.#.1."),
    ("transformer.encoder.#.attention.attention.", "model.encoder.layers.#.self_attn."),
    ("transformer.encoder.#.attention_residual.norm.", "model.encoder.layers.#.self_attn_layer_norm."),
    ("transformer.encoder.#.feedforward.0.", "model.encoder.layers.#.mlp.fc1."),
    ("transformer.encoder.#.feedforward.3.", "model.encoder.layers.#.mlp.fc2."),
    ("transformer.encoder.#.feedforward_residual.norm.", "model.encoder.layers.#.final_layer_norm."),
    ("transformer.decoder.layers.#.self_attention.in_proj_", "model.decoder.layers.#.self_attn.{q,k,v}_proj."),
    ("transformer.decoder.layers.#.self_attention.out_proj.", "model.decoder.layers.#.self_attn.o_proj."),
    ("transformer.decoder.layers.#.self_residual.norm.", "model.decoder.layers.#.self_attn_layer_norm."),
    ("transformer.decoder.layers.#.attention.attention.", "model.decoder.layers.#.encoder_attn."),
    ("transformer.decoder.layers.#.attention_residual.norm.", "model.decoder.layers.#.encoder_attn_layer_norm."),
    ("transformer.decoder.layers.#.feedforward.0.", "model.decoder.layers.#.mlp.fc1."),
    ("transformer.decoder.layers.#.feedforward.3.", "model.decoder.layers.#.mlp.fc2."),
    ("transformer.decoder.layers.#.feedforward_residual.norm.", "model.decoder.layers.#.final_layer_norm."),
    ("transformer.proposals.project.0.", "model.enc_output."),
    ("transformer.proposals.project.1.", "model.enc_output_norm."),
    ("transformer.proposals.position.0.", "model.pos_trans."),
    ("transformer.proposals.position.1.", "model.pos_trans_norm."),
    ("transformer.queries.embedding", "model.query_position_embeddings.weight"),
    ("transformer.queries.reference.", "model.reference_points."),
)

_ORIGINAL: Rows = (
    ("level_embedding", "transformer.level_embed"),
    ("projections.#.conv.", "input_proj.#.0."),
    ("projections.#.norm.", "input_proj.#.1."),
    ("transformer.encoder.#.attention.attention.", "transformer.encoder.layers.#.self_attn."),
    ("transformer.encoder.#.attention_residual.norm.", "transformer.encoder.layers.#.norm1."),
    ("transformer.encoder.#.feedforward.0.", "transformer.encoder.layers.#.linear1."),
    ("transformer.encoder.#.feedforward.3.", "transformer.encoder.layers.#.linear2."),
    ("transformer.encoder.#.feedforward_residual.norm.", "transformer.encoder.layers.#.norm2."),
    ("transformer.decoder.layers.#.self_attention.", "transformer.decoder.layers.#.self_attn."),
    ("transformer.decoder.layers.#.self_residual.norm.", "transformer.decoder.layers.#.norm2."),
    ("transformer.decoder.layers.#.attention.attention.", "transformer.decoder.layers.#.cross_attn."),
    ("transformer.decoder.layers.#.attention_residual.norm.", "transformer.decoder.layers.#.norm1."),
    ("transformer.decoder.layers.#.feedforward.0.", "transformer.decoder.layers.#.linear1."),
    ("transformer.decoder.layers.#.feedforward.3.", "transformer.decoder.layers.#.linear2."),
    ("transformer.decoder.layers.#.feedforward_residual.norm.", "transformer.decoder.layers.#.norm3."),
    ("transformer.proposals.project.0.", "transformer.enc_output."),
    ("transformer.proposals.project.1.", "transformer.enc_output_norm."),
    ("transformer.proposals.position.0.", "transformer.pos_trans."),
    ("transformer.proposals.position.1.", "transformer.pos_trans_norm."),
    ("transformer.queries.embedding", "query_embed.weight"),
    ("transformer.queries.reference.", "transformer.reference_points."),
)

_RESNET: Rows = (  # from transformers' ResNet to torchvision's and timm's
    ("embedder.embedder.convolution.", "conv1."),
    ("embedder.embedder.normalization.", "bn1."),
    ("encoder.stages.#.layers.#.layer.#.convolution.", "layer#+.#.conv#+."),
    ("encoder.stages.#.layers.#.layer.#.normalization.", "layer#+.#.bn#+."),
    ("encoder.stages.#.layers.#.shortcut.convolution.", "layer#+.#.downsample.0."),
    ("encoder.stages.#.layers.#.shortcut.normalization.", "layer#+.#.downsample.1."),
)

_RENAMED = (  # names of transformers 4, then their later form
    (r"^model\.backbone\.conv_encoder\.", "model.backbone."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"(\.layers\.\d+)\.(fc[12])\.", r"\1.mlp.\2."),
)


@dataclass(frozen=True)
class Layout:
    """The rows of a layout; `copies` is where it keeps second copies of the heads."""

    rows: Rows
    copies: str

    def names(self, ours: str, depth: int) -> list[str]:
        """Return what the tensor `ours` of a detector with `depth` decoder layers is called; [] if it has no name."""
        for row, theirs in self.rows:
            pattern = re.escape(row).replace(r"\#", r"(\d+)")
            if match := re.match(pattern, ours):
                numbers = map(int, match.groups())
                pieces = re.split(r"(#\+?)", theirs.replace("@", str(depth)))
                name = "".join(str(next(numbers) + len(p) - 1) if p.startswith("#") else p for p in pieces)
                whole = name + ours[match.end() :]
                return [whole.replace("{q,k,v}", part) for part in "qkv"] if "{q,k,v}" in whole else [whole]
        return []


def transformers_layout(*, torchvision_names: bool = False) -> Layout:
    """Return the layout of transformers 5, its backbone by its own names or by those of torchvision and timm."""
    backbone = (
        _under("model.backbone.model.") if torchvision_names else (("backbone.network.", "model.backbone.model."),)
    )
    return Layout(_HEADS + _TRANSFORMERS + backbone, "model.decoder.")


def original_layout() -> Layout:
    """Return the layout of the authors' repository."""
    return Layout(_HEADS + _ORIGINAL + _under("backbone.0.body."), "transformer.decoder.")


def _under(prefix: str) -> Rows:
    return tuple((f"backbone.network.{ours}", prefix + theirs) for ours, theirs in _RESNET)


def modern_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the `tensors` of a transformers checkpoint by the names that transformers 5 gives them."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        renamed[name] = tensor
    return renamed


def import_state(
    tensors: Mapping[str, Tensor], layout: Layout, expected: Mapping[str, Tensor], depth: int, file: Path
) -> dict[str, Tensor]:
    """Return the `tensors` of a checkpoint under our names.

    Heads that layers share may be there once, as `class_embed.0`, and heads may be there twice. Counters of batches,
    which frozen normalisations do not need, are left out. All other tensors must be there, and no others.

    Args:
        tensors: by their names in `layout`.
        layout: what they are called.
        expected: the state of the detector that they are for, with its shapes.
        depth: its decoder layers.
        file: for messages.

    Raises:
        CheckpointError: a tensor is missing, unknown, of the wrong shape or unlike its copy; the message names it.
    """
    found = _without_copies(tensors, layout, file)
    state, used = {}, set()
    for ours, tensor in expected.items():
        names = layout.names(ours, depth)
        parts = []
        for name in names:
            kind = name.partition(".")[0]
            if name not in found and not any(re.match(rf"{kind}\.[1-9]", other) for other in found):
                name = re.sub(r"^(class_embed|bbox_embed)\.\d+\.", r"\1.0.", name)
            if name not in found:
                raise CheckpointError(f"{file}: lacks tensor {name}; the file is truncated, or of another model")
            shape = [tensor.shape[0] // len(names), *tensor.shape[1:]]
            if list(found[name].shape) != shape:
                raise CheckpointError(f"{file}: tensor {name} is {list(found[name].shape)}, expected {shape}")
            parts.append(found[name])
            used.add(name)
        state[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
    for name in sorted(found.keys() - used):
        raise CheckpointError(f"{file}: has an unknown tensor {name}; the file is of another kind of model")
    return state


def _without_copies(tensors: Mapping[str, Tensor], layout: Layout, file: Path) -> dict[str, Tensor]:
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
    for kind in ("class_embed.", "bbox_embed."):
        for name in [name for name in found if name.startswith(layout.copies + kind)]:
            copy = found.pop(name)
            if not torch.equal(found.setdefault(name.removeprefix(layout.copies), copy), copy):
                raise CheckpointError(f"{file}: tensor {name} differs from its copy; a detector has one head per layer")
    return found


def export_state(
    state: Mapping[str, Tensor], layout: Layout, depth: int, *, copied: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the `state` of a detector with `depth` decoder layers under the names of `layout`.

    `copied` are the kinds of heads, `class_embed` and `bbox_embed`, that the layout wants twice.
    """
    tensors: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        names = layout.names(ours, depth)
        tensors |= zip(names, tensor.chunk(len(names)), strict=True)
    heads = [name for name in tensors if name.partition(".")[0] in copied]
    return tensors | {layout.copies + name: tensors[name].clone() for name in heads}
