"""Small models of the real classes in transformers, one case a family and variant, with every parameter redrawn."""

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.d_fine.modeling_d_fine import DFineDecoder

H, W = 96, 160  # of the image; the second of a batch is padded to it
CHANNELS, HEADS = 32, 2


@dataclass(frozen=True)
class Case:
    """How to build a model and its inputs.

    `outputs` name those of its outputs that depend on the op, `calls` is how many attentions it has, `references` the
    sizes of the last axis of the reference points that they see, `masked` whether they see padding, `captured` how
    many tensors `output_attentions=True` returns at least, and `answers` whether the attentions return their weights
    unasked, since the model does not tell them.
    """

    build: Callable[[], nn.Module]
    outputs: tuple[str, ...]
    calls: int
    references: frozenset[int]
    inputs: Callable[[], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    masked: bool = True
    captured: int = 1
    answers: bool = False


def resnet(stages: int = 3) -> transformers.ResNetConfig:
    """Return a backbone with strides 8, 16 and 32 (or 4 to 32) in three (four) stages."""
    names = ["stage1", "stage2", "stage3", "stage4"][-stages:]
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], out_features=names
    )


# In transformers 5.0 the defaults of two families name a backbone of timm, which is refused beside another one.
NO_TIMM = {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False}


def redraw(model: nn.Module) -> nn.Module:
    """Draw every parameter anew, those of norms around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter += 1
    return model


def padded_batch() -> dict[str, Any]:
    """Return two images, the second of which fills a part of its frame."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, H, W, dtype=torch.long)
    mask[1, 64:] = 0
    mask[1, :, 128:] = 0
    return {"pixel_values": torch.randn(2, 3, H, W, generator=generator) * mask[:, None], "pixel_mask": mask}


def deformable_detr(**options: Any) -> nn.Module:
    sizes = {
        "backbone_config": resnet(),
        **NO_TIMM,
        "d_model": CHANNELS,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "num_queries": 7,
        "two_stage_num_proposals": 7,
        "encoder_n_points": 2,
        "decoder_n_points": 3,
    }
    return transformers.DeformableDetrForObjectDetection(transformers.DeformableDetrConfig(**sizes | options))


def rt_detr_like(family: str, **options: Any) -> nn.Module:
    """Return a model of one of the families that grew out of RT-DETR."""
    sizes = {
        "backbone_config": resnet(),
        "encoder_in_channels": [12, 16, 20],
        "encoder_hidden_dim": CHANNELS,
        "encoder_attention_heads": HEADS,
        "encoder_ffn_dim": 24,
        "d_model": CHANNELS,
        "decoder_in_channels": [CHANNELS] * 3,
        "decoder_attention_heads": HEADS,
        "decoder_ffn_dim": 24,
        "decoder_layers": 2,
        "decoder_n_points": 2,
        "num_queries": 7,
        "num_denoising": 0,
        "num_labels": 3,
    }
    config = getattr(transformers, f"{family}Config")(**sizes | options)
    return getattr(transformers, f"{family}ForObjectDetection")(config)


def lw_detr() -> nn.Module:
    backbone = transformers.LwDetrViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        pretrain_image_size=32,
        patch_size=8,
        num_windows=4,
        window_block_indices=[0],
        out_indices=[1, 2],
    )
    config = transformers.LwDetrConfig(
        backbone_config=backbone,
        projector_scale_factors=[1.0, 0.5],
        d_model=CHANNELS,
        decoder_ffn_dim=24,
        decoder_layers=2,
        decoder_n_points=2,
        decoder_self_attention_heads=HEADS,
        decoder_cross_attention_heads=HEADS,
        num_queries=7,
        group_detr=2,
    )
    return transformers.LwDetrForObjectDetection(config)


def rf_detr() -> nn.Module:
    backbone = transformers.RfDetrDinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        num_windows=2,
        out_indices=[1, 2],
    )
    config = transformers.RfDetrConfig(
        backbone_config=backbone,
        d_model=CHANNELS,
        decoder_ffn_dim=24,
        decoder_layers=2,
        decoder_n_points=2,
        decoder_self_attention_heads=HEADS,
        decoder_cross_attention_heads=HEADS,
        num_queries=7,
        group_detr=2,
    )
    return transformers.RfDetrForObjectDetection(config)


def grounding_dino(family: str, **options: Any) -> nn.Module:
    text = transformers.BertConfig(
        vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = getattr(transformers, f"{family}Config")(
        backbone_config=resnet(),
        text_config=text,
        d_model=CHANNELS,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2 * HEADS,
        decoder_attention_heads=2 * HEADS,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_n_points=2,
        decoder_n_points=2,
        num_queries=7,
        max_text_len=8,
        **options,
    )
    return getattr(transformers, f"{family}ForObjectDetection")(config)


def grounded_batch() -> dict[str, Any]:
    """Return padded images with a text of two phrases each: [CLS] a . b c . [SEP]."""
    text = torch.tensor([[101, 1050, 1012, 1060, 1061, 1012, 102], [101, 1070, 1012, 1080, 1081, 1012, 102]])
    return padded_batch() | {
        "input_ids": text,
        "attention_mask": torch.ones_like(text),
        "token_type_ids": torch.zeros_like(text),
    }


def omdet_turbo() -> nn.Module:
    text = transformers.CLIPTextConfig(
        vocab_size=50,
        bos_token_id=0,
        eos_token_id=49,
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=24,
    )
    config = transformers.OmDetTurboConfig(
        text_config=text,
        backbone_config=resnet(),
        **NO_TIMM,
        apply_layernorm_after_vision_backbone=False,
        text_projection_in_dim=24,
        text_projection_out_dim=24,
        class_embed_dim=24,
        task_encoder_hidden_dim=24,
        num_queries=7,
        encoder_hidden_dim=CHANNELS,
        vision_features_channels=[CHANNELS] * 3,
        encoder_in_channels=[12, 16, 20],
        encoder_attention_heads=HEADS,
        encoder_dim_feedforward=24,
        decoder_hidden_dim=CHANNELS,
        decoder_num_heads=HEADS,
        decoder_num_layers=2,
        decoder_num_points=2,
        decoder_dim_feedforward=24,
    )
    return transformers.OmDetTurboForObjectDetection(config)


def prompted_images() -> dict[str, Any]:
    """Return images with classes (two for the first, one for the second) and a task."""
    classes = torch.tensor([[0, 5, 6, 49], [0, 7, 8, 49], [0, 9, 10, 49]])
    tasks = torch.tensor([[0, 11, 12, 13, 49], [0, 14, 15, 16, 49]])
    return images() | {
        "classes_input_ids": classes,
        "classes_attention_mask": torch.ones_like(classes),
        "tasks_input_ids": tasks,
        "tasks_attention_mask": torch.ones_like(tasks),
        "classes_structure": torch.tensor([2, 1]),
    }


def mask2former(**options: Any) -> nn.Module:
    sizes = {
        "backbone_config": resnet(4),
        "feature_size": CHANNELS,
        "mask_feature_size": CHANNELS,
        "hidden_dim": CHANNELS,
        "encoder_feedforward_dim": 24,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_attention_heads": HEADS,
        "dim_feedforward": 24,
        "num_queries": 7,
        "num_labels": 3,
    }
    return transformers.Mask2FormerForUniversalSegmentation(transformers.Mask2FormerConfig(**sizes | options))


def oneformer() -> nn.Module:
    config = transformers.OneFormerConfig(
        backbone_config=resnet(4),
        conv_dim=CHANNELS,
        mask_dim=CHANNELS,
        hidden_dim=CHANNELS,
        encoder_feedforward_dim=24,
        encoder_layers=2,
        decoder_layers=2,
        query_dec_layers=1,
        num_attention_heads=HEADS,
        dim_feedforward=24,
        num_queries=7,
        task_seq_len=5,
        num_labels=3,
    )
    return transformers.OneFormerForUniversalSegmentation(config)


def images_with_task() -> dict[str, Any]:
    """Return images, each with the tokens of its task."""
    return images() | {"task_inputs": torch.tensor([[1, 2, 3, 4, 5], [2, 3, 4, 5, 6]])}


def images() -> dict[str, Any]:
    """Return two whole images."""
    return {"pixel_values": torch.randn(2, 3, H, W, generator=torch.Generator().manual_seed(1))}


DETECTIONS = ("logits", "pred_boxes")
SEGMENTS = ("class_queries_logits", "masks_queries_logits")
PROMPTED = ("decoder_coord_logits", "decoder_class_logits")
GROUNDED = ("last_hidden_state", "pred_boxes")
# In transformers 5.0 its decoder is, and does not tell its attentions; later these are captured.
D_FINE_IS_TOLD = "output_attentions" in inspect.signature(DFineDecoder.forward).parameters
POINTS, BOXES = frozenset({2}), frozenset({4})


def rt_detr_case(family: str, **options: Any) -> Case:
    """Return a case of a family that grew out of RT-DETR, whose attentions see no padding."""
    answers = family == "DFine" and D_FINE_IS_TOLD
    return Case(rt_detr_like, DETECTIONS, 2, BOXES, images, {"family": family, **options}, False, answers=answers)


def grounding_case(family: str) -> Case:
    """Return a case of one of the two Grounding DINOs."""
    references = POINTS | BOXES
    return Case(grounding_dino, GROUNDED, 3, references, grounded_batch, {"family": family}, answers=True)


EVERY_CASE = {
    "deformable_detr": Case(deformable_detr, DETECTIONS, 3, POINTS, padded_batch),
    "deformable_detr, boxes": Case(
        deformable_detr,
        DETECTIONS,
        3,
        POINTS | BOXES,
        padded_batch,
        {"two_stage": True, "with_box_refine": True},
    ),
    "rt_detr": rt_detr_case("RTDetr"),
    "rt_detr_v2": rt_detr_case("RTDetrV2"),
    "rt_detr_v2, discrete": rt_detr_case("RTDetrV2", decoder_method="discrete"),
    "d_fine": rt_detr_case("DFine", decoder_n_points=[4, 1, 2], lqe_hidden_dim=8),
    "d_fine, discrete": rt_detr_case("DFine", decoder_method="discrete", lqe_hidden_dim=8),
    "deimv2": rt_detr_case("Deimv2", decoder_n_points=[4, 1, 2], lqe_hidden_dim=8),
    "pp_doclayout_v2": rt_detr_case("PPDocLayoutV2", class_thresholds=[0.5] * 3, class_order=[0, 1, 2]),
    "pp_doclayout_v3": rt_detr_case("PPDocLayoutV3", backbone_config=resnet(4), x4_feat_dim=8),
    "pp_doclayout_v4": rt_detr_case("PPDocLayoutV4", hidden_size=CHANNELS),
    "lw_detr": Case(lw_detr, DETECTIONS, 2, BOXES, padded_batch),
    "rf_detr": Case(rf_detr, DETECTIONS, 2, BOXES, padded_batch),
    "grounding_dino": grounding_case("GroundingDino"),
    "mm_grounding_dino": grounding_case("MMGroundingDino"),
    "omdet_turbo": Case(omdet_turbo, PROMPTED, 2, BOXES, prompted_images, masked=False, answers=True),
    "mask2former": Case(mask2former, SEGMENTS, 2, POINTS, padded_batch, masked=False),
    "oneformer": Case(oneformer, SEGMENTS, 2, POINTS, images_with_task, masked=False),
}
# Older versions of transformers have fewer families.
CASES = {name: case for name, case in EVERY_CASE.items() if find_spec(f"transformers.models.{name.partition(',')[0]}")}


def build(name: str, **options: Any) -> nn.Module:
    """Return the model of a case, or with other `options`, every parameter redrawn, in eval mode."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of head sizes that are no powers of 2
        return redraw(CASES[name].build(**CASES[name].options | options)).eval()


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """Return the deformable attentions of a model by name, found without our table."""
    return {
        name: module
        for name, module in model.named_modules()
        if "MultiscaleDeformableAttention" in type(module).__name__
    }


def run(model: nn.Module, inputs: dict[str, Any], **options: Any) -> Any:
    """Call the model on a copy of its inputs, with the same random numbers each time."""
    torch.manual_seed(2)
    return model(**copy.deepcopy(inputs), **options)
