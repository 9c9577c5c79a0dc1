"""Deformable attention for PyTorch: fast on a CPU, drop-in for the models that use it, and readable.

Zhu et al. 2020, *Deformable DETR: Deformable Transformers for End-to-End Object Detection*
(https://arxiv.org/abs/2010.04159).
"""

from deform_attn.functional import deformable_attention, explain, multi_scale_deformable_attention, use_backend
from deform_attn.interop.patch import patch, unpatch
from deform_attn.modules.multi_scale import MultiScaleDeformableAttention
from deform_attn.modules.single_scale import DeformableAttention
from deform_attn.recording import record
from deform_attn.reference_points import encoder_reference_points

__all__ = [
    "DeformableAttention",
    "MultiScaleDeformableAttention",
    "deformable_attention",
    "encoder_reference_points",
    "explain",
    "multi_scale_deformable_attention",
    "patch",
    "record",
    "unpatch",
    "use_backend",
]
