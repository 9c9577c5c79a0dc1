"""Grounding DINO: `MultiScaleDeformableAttention` of its repository, mmcv's without dropout and residual."""

from deform_attn.interop import mmcv
from deform_attn.interop.structure import Structure

STRUCTURE = Structure(
    family="groundingdino",
    class_name=mmcv.STRUCTURE.class_name,
    marks=("key_padding_mask", "embed_dim"),
    others_marks=("embed_dims", "dropout"),
    arguments=tuple(name for name in mmcv.STRUCTURE.arguments if name != "identity"),
    attributes=mmcv.ATTRIBUTES,
)
