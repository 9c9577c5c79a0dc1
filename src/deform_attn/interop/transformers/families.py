"""The families of transformers 5 that have a deformable attention: one row each."""

from deform_attn.interop.transformers.forms import D_FINE, DEFORMABLE_DETR, MASK2FORMER, ONEFORMER, RT_DETR_V2
from deform_attn.interop.transformers.rules import Rule

# Where a row names tellers, encoder and decoder are told whether somebody wants the weights, and do not tell their
# attentions.
RULES: tuple[Rule, ...] = (
    Rule("deformable_detr", "DeformableDetrMultiscaleDeformableAttention", DEFORMABLE_DETR),
    Rule("rt_detr", "RTDetrMultiscaleDeformableAttention", DEFORMABLE_DETR),
    Rule("rt_detr_v2", "RTDetrV2MultiscaleDeformableAttention", RT_DETR_V2),
    Rule("d_fine", "DFineMultiscaleDeformableAttention", D_FINE, tellers=("DFineDecoder",)),
    Rule("deimv2", "Deimv2MultiscaleDeformableAttention", D_FINE),
    Rule(
        "grounding_dino",
        "GroundingDinoMultiscaleDeformableAttention",
        DEFORMABLE_DETR,
        tellers=("GroundingDinoEncoder", "GroundingDinoDecoder"),
    ),
    Rule(
        "mm_grounding_dino",
        "MMGroundingDinoMultiscaleDeformableAttention",
        DEFORMABLE_DETR,
        tellers=("MMGroundingDinoEncoder", "MMGroundingDinoDecoder"),
    ),
    Rule(
        "omdet_turbo",
        "OmDetTurboMultiscaleDeformableAttention",
        DEFORMABLE_DETR,
        tellers=("OmDetTurboDecoder",),
    ),
    Rule("rf_detr", "RfDetrMultiscaleDeformableAttention", DEFORMABLE_DETR),
    Rule("lw_detr", "LwDetrMultiscaleDeformableAttention", DEFORMABLE_DETR),
    Rule("pp_doclayout_v2", "PPDocLayoutV2MultiscaleDeformableAttention", DEFORMABLE_DETR),
    Rule("pp_doclayout_v3", "PPDocLayoutV3MultiscaleDeformableAttention", DEFORMABLE_DETR),
    Rule("pp_doclayout_v4", "PPDocLayoutV4MultiscaleDeformableAttention", DEFORMABLE_DETR),
    Rule("mask2former", "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention", MASK2FORMER),
    Rule("oneformer", "OneFormerPixelDecoderEncoderMultiscaleDeformableAttention", ONEFORMER),
)
