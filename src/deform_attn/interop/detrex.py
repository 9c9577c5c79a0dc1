"""detrex: `MultiScaleDeformableAttention` of detrex, which computes what mmcv's does."""

from typing import Any

from torch import Tensor

from deform_attn.interop import mmcv
from deform_attn.interop.structure import Structure
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs

STRUCTURE = Structure(
    family="detrex",
    class_name=mmcv.STRUCTURE.class_name,
    marks=("key_padding_mask", "embed_dim", "dropout"),
    others_marks=("embed_dims",),
    arguments=mmcv.STRUCTURE.arguments,
    attributes=mmcv.STRUCTURE.attributes,
)


def forward(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return `[Q, N, C]`, or `[N, Q, C]` if the module is `batch_first`, for the arguments of the stock forward."""
    return mmcv.forward(module, *args, **kwargs)


def compute_sampling(module: Any, *args: Any, **kwargs: Any) -> tuple[Sampling, Pairs, tuple[int, ...]]:
    """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each."""
    return mmcv.compute_sampling(module, *args, **kwargs)
