"""detrex: `MultiScaleDeformableAttention` of detrex, which computes what mmcv's does."""

from deform_attn.interop import mmcv
from deform_attn.interop.structure import Structure

STRUCTURE = Structure(
    family="detrex",
    class_name=mmcv.STRUCTURE.class_name,
    marks=("key_padding_mask", "embed_dim", "dropout"),
    others_marks=("embed_dims",),
    arguments=mmcv.STRUCTURE.arguments,
    attributes=mmcv.STRUCTURE.attributes,
)
