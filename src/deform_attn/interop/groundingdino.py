"""Grounding DINO: `MultiScaleDeformableAttention` of its repository, mmcv's without dropout and residual."""

from typing import Any

from torch import Tensor

from deform_attn.interop import mmcv
from deform_attn.interop.structure import Structure
from deform_attn.recording import Sampling
from deform_attn.shape_checks import Pairs

STRUCTURE = Structure(
    family="groundingdino",
    class_name=mmcv.STRUCTURE.class_name,
    marks=("key_padding_mask", "embed_dim"),
    others_marks=("embed_dims", "dropout"),
    arguments=tuple(name for name in mmcv.STRUCTURE.arguments if name != "identity"),
    attributes=mmcv.ATTRIBUTES,
)


def forward(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Return `[Q, N, C]`, or `[N, Q, C]` if the module is `batch_first`, for the arguments of the stock forward."""
    return mmcv.attend(module, *args, **kwargs)


def compute_sampling(module: Any, *args: Any, **kwargs: Any) -> tuple[Sampling, Pairs, tuple[int, ...]]:
    """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each."""
    return mmcv.sampling(module, *args, **kwargs)
