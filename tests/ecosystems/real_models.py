"""Models as their packages build them, small where a package lets them be, and how to run them on padded images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import deform_attn.stand_ins  # noqa: F401  (mmcv.ops needs mmcv._ext)

H, W = 96, 160  # of an image; the second of a batch fills a part of it
PART = (64, 128)
LEVELS = [(12, 20), (6, 10), (3, 5)]


@dataclass(frozen=True)
class RealModel:
    """A model: how to build it, how to run it in a dtype, what its attentions are called, and how many there are.

    `run` returns the outputs that depend on the attentions. `training` is the mode in which it is compared.
    """

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, torch.dtype], dict[str, Tensor]]
    kind: str
    calls: int
    training: bool = False

    def model(self) -> nn.Module:
        """Return the model with every parameter redrawn, always the same."""
        torch.manual_seed(0)
        return redraw(self.build()).train(self.training)


def redraw(model: nn.Module) -> nn.Module:
    """Draw every parameter anew: maps that keep the size of what they are given, norms around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_(drawn * fan_in**-0.5)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter += 1
    return model


def numbers(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers, the same ones in every dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def padded(h: int, w: int) -> Tensor:
    """Return the masks of two maps, true where the second one is padding."""
    mask = torch.zeros(2, h, w, dtype=torch.bool)
    mask[1, h * PART[0] // H :] = True
    mask[1, :, w * PART[1] // W :] = True
    return mask


def ultralytics_rtdetr() -> nn.Module:
    from ultralytics.nn.tasks import RTDETRDetectionModel

    return RTDETRDetectionModel("rtdetr-l.yaml", verbose=False)


def run_ultralytics(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    boxes, scores, *_ = model.predict(numbers(2, 3, H, W, dtype=dtype))
    return {"boxes": boxes, "scores": scores}


def rfdetr_nano() -> nn.Module:
    from rfdetr import RFDETRNano

    return RFDETRNano(pretrain_weights=None, num_queries=20, group_detr=2).model.model


def run_rfdetr(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    images = [numbers(3, H, W, dtype=dtype), numbers(3, *PART, seed=2, dtype=dtype)]
    outputs = model(images)
    return {name: outputs[name] for name in ("pred_logits", "pred_boxes")}


def mmdet_deformable_detr() -> nn.Module:
    import mmdet.models  # noqa: F401  (registers what the config names)
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    attention = {"embed_dims": 256, "num_heads": 2, "num_levels": 3, "batch_first": True}
    ffn = {"embed_dims": 256, "feedforward_channels": 24, "ffn_drop": 0.0}
    config = {
        "type": "DeformableDETR",
        "num_queries": 7,
        "num_feature_levels": 3,
        "with_box_refine": True,
        "as_two_stage": True,
        "data_preprocessor": {"type": "DetDataPreprocessor"},
        "backbone": {
            "type": "ResNet",
            "depth": 18,
            "base_channels": 8,
            "out_indices": (1, 2, 3),
            "norm_cfg": {"type": "BN"},
            "style": "pytorch",
        },
        "neck": {
            "type": "ChannelMapper",
            "in_channels": [16, 32, 64],
            "kernel_size": 1,
            "out_channels": 256,
            "norm_cfg": {"type": "GN", "num_groups": 4},
            "num_outs": 3,
        },
        "encoder": {"num_layers": 1, "layer_cfg": {"self_attn_cfg": {"num_points": 2, **attention}, "ffn_cfg": ffn}},
        "decoder": {
            "num_layers": 2,
            "return_intermediate": True,
            "post_norm_cfg": None,
            "layer_cfg": {
                "self_attn_cfg": {"embed_dims": 256, "num_heads": 2, "dropout": 0.0, "batch_first": True},
                "cross_attn_cfg": {"num_points": 3, **attention},
                "ffn_cfg": ffn,
            },
        },
        "positional_encoding": {"num_feats": 128, "normalize": True, "offset": -0.5},
        "bbox_head": {
            "type": "DeformableDETRHead",
            "num_classes": 3,
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True},
            "loss_bbox": {"type": "L1Loss"},
            "loss_iou": {"type": "GIoULoss"},
        },
    }
    return MODELS.build(ConfigDict(config))


def run_mmdet(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    from mmdet.structures import DetDataSample

    samples = [DetDataSample(metainfo={"img_shape": size, "batch_input_shape": (H, W)}) for size in ((H, W), PART)]
    classes, boxes, *_ = model(numbers(2, 3, H, W, dtype=dtype), samples, mode="tensor")
    return {"classes": classes, "boxes": boxes}


def mmdet_pixel_decoder() -> nn.Module:
    from mmdet.models.layers import MSDeformAttnPixelDecoder
    from mmengine.config import ConfigDict

    layer = {
        "self_attn_cfg": {"embed_dims": 64, "num_heads": 2, "num_levels": 3, "num_points": 2, "batch_first": True},
        "ffn_cfg": {"embed_dims": 64, "feedforward_channels": 24, "num_fcs": 2, "ffn_drop": 0.0},
    }
    return MSDeformAttnPixelDecoder(
        in_channels=[8, 12, 16, 20],
        strides=[4, 8, 16, 32],
        feat_channels=64,
        out_channels=64,
        norm_cfg={"type": "GN", "num_groups": 4},
        encoder=ConfigDict({"num_layers": 2, "layer_cfg": layer}),
        positional_encoding={"num_feats": 32, "normalize": True},
    )


def run_pixel_decoder(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    sizes = [(24, 40), *LEVELS]
    maps = [numbers(2, c, h, w, seed=c, dtype=dtype) for c, (h, w) in zip((8, 12, 16, 20), sizes, strict=True)]
    mask_features, levels = model(maps)
    return {"mask features": mask_features, "last level": levels[-1]}


def groundingdino_transformer() -> nn.Module:
    from groundingdino.models.GroundingDINO.transformer import Transformer

    return Transformer(
        d_model=256,
        nhead=4,
        num_queries=7,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dim_feedforward=24,
        num_feature_levels=3,
        enc_n_points=2,
        dec_n_points=3,
        learnable_tgt_init=True,
        embed_init_tgt=True,
        use_fusion_layer=True,
        use_text_cross_attention=True,
        return_intermediate_dec=True,
    )


def run_groundingdino(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    maps = [numbers(2, 256, h, w, seed=h, dtype=dtype) for h, w in LEVELS]
    places = [numbers(2, 256, h, w, seed=w, dtype=dtype) for h, w in LEVELS]
    text = {
        "encoded_text": numbers(2, 5, 256, dtype=dtype),
        "text_token_mask": torch.ones(2, 5, dtype=torch.bool),
        "position_ids": torch.arange(5).repeat(2, 1),
        "text_self_attention_masks": torch.ones(2, 5, 5, dtype=torch.bool),
    }
    hidden, *_ = model(maps, [padded(h, w) for h, w in LEVELS], None, places, None, None, text)
    return {"first layer": hidden[0], "last layer": hidden[-1]}


OPENMMLAB = "MultiScaleDeformableAttention"
MODELS = {
    "ultralytics, RT-DETR-L": RealModel(ultralytics_rtdetr, run_ultralytics, "MSDeformAttn", 6, training=True),
    "rfdetr, nano": RealModel(rfdetr_nano, run_rfdetr, "MSDeformAttn", 2),
    "mmdet, Deformable DETR": RealModel(mmdet_deformable_detr, run_mmdet, OPENMMLAB, 3),
    "mmdet, Mask2Former's pixel decoder": RealModel(mmdet_pixel_decoder, run_pixel_decoder, OPENMMLAB, 2),
    "groundingdino, transformer": RealModel(groundingdino_transformer, run_groundingdino, OPENMMLAB, 4),
}
