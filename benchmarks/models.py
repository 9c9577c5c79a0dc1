"""Whole models of transformers at the sizes that people use, with random weights, and a batch of one for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.packages import not_installed

Batch = dict[str, Any]

OFFSET_PIXELS = 3.0  # the standard deviation of the offsets, as in the cases of the op


@dataclass(frozen=True)
class WholeModel:
    """A model by `name`, how tables call it, and `build`, which returns it anew.

    `pixels` are the picture's (H, W); `outputs` the tensors that are compared; `encoder` is the path of the module
    that holds the deformable encoder, if the model has one. `exact` is whether the comparison is made in float64;
    `training_pixels` the picture's size in training, if a larger one does not fit into 24 GB or takes minutes.
    `packages` are the modules that it imports. `use_stand_in` lets a model call the stand-in for its compiled
    extension, if it has one.
    """

    name: str
    label: str
    build: Callable[[], nn.Module]
    pixels: tuple[int, int]
    outputs: tuple[str, ...] = ("last_hidden_state", "logits")
    encoder: str | None = None
    has_text: bool = False
    segments: bool = False
    exact: bool = False
    training_pixels: tuple[int, int] | None = None
    packages: tuple[str, ...] = ("transformers",)
    use_stand_in: Callable[[nn.Module], None] | None = None

    def unavailable(self) -> str | None:
        """Return what keeps it from being built on this machine."""
        return not_installed(self.packages)

    def model(self) -> nn.Module:
        """Return the model, the same at each call, with attentions that look around and normalisation that normalises.

        At their initial values all offsets are the same whole numbers of pixels, whatever the query, and the statistics
        of BatchNorm are not those of the features, which die out on their way.
        """
        torch.manual_seed(0)
        model = self.build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("sampling_offsets.weight"):
                    parameter.normal_(std=OFFSET_PIXELS / parameter.shape[1] ** 0.5)
                elif name.endswith("attention_weights.weight"):
                    parameter.normal_(std=parameter.shape[1] ** -0.5)
            norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = 1.0
            model.train()(**self.batch(), **self.targets())
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        return model

    def batch(self, dtype: torch.dtype = torch.float32) -> Batch:
        """Return one picture."""
        numbers = torch.Generator().manual_seed(1)
        batch: Batch = {"pixel_values": torch.randn(1, 3, *self.pixels, generator=numbers).to(dtype)}
        if self.has_text:  # [CLS] a . b . c . d . [SEP]
            text = torch.tensor([[101, 1050, 1012, 1060, 1012, 1070, 1012, 1080, 1012, 102]])
            batch |= {"input_ids": text, "attention_mask": torch.ones_like(text)}
            batch["token_type_ids"] = torch.zeros_like(text)
        return batch

    def targets(self, dtype: torch.dtype = torch.float32) -> Batch:
        """Return what the model asks for to compute its loss: eight objects."""
        numbers = torch.Generator().manual_seed(2)
        classes = torch.arange(8) % 4
        if self.segments:
            masks = torch.zeros(8, *self.pixels, dtype=dtype)
            for i, mask in enumerate(masks):
                mask[60 * i : 60 * i + 90, 40 * i : 40 * i + 120] = 1
            return {"mask_labels": [masks], "class_labels": [classes]}
        centres, sizes = torch.rand(8, 2, generator=numbers), torch.rand(8, 2, generator=numbers)
        boxes = torch.cat((0.3 + 0.4 * centres, 0.05 + 0.3 * sizes), dim=-1).to(dtype)
        return {"labels": [{"class_labels": classes, "boxes": boxes}]}


def _resnet50() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(out_features=["stage2", "stage3", "stage4"])


def _swin_tiny(*stages: int) -> Any:
    from transformers import SwinConfig

    features = [f"stage{stage}" for stage in stages]
    return SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=features)


def deformable_detr(**settings: Any) -> nn.Module:
    """Return Deformable DETR with ResNet-50, as published unless `settings` of its config differ."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    return DeformableDetrForObjectDetection(
        DeformableDetrConfig(**{"backbone_config": _resnet50(), "num_labels": 91} | settings)
    )


def _rt_detr() -> nn.Module:
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    return RTDetrForObjectDetection(RTDetrConfig(num_labels=80))


def _rt_detr_v2() -> nn.Module:
    from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

    return RTDetrV2ForObjectDetection(RTDetrV2Config(num_labels=80))


def _d_fine() -> nn.Module:
    from transformers import DFineConfig, DFineForObjectDetection

    return DFineForObjectDetection(DFineConfig(num_labels=80))


def _mask2former() -> nn.Module:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(backbone_config=_swin_tiny(1, 2, 3, 4), num_labels=80)
    return Mask2FormerForUniversalSegmentation(config)


def _grounding_dino() -> nn.Module:
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection

    text = BertConfig(num_hidden_layers=2)  # of twelve: it costs the same on both sides
    config = GroundingDinoConfig(backbone_config=_swin_tiny(2, 3, 4), text_config=text)
    return GroundingDinoForObjectDetection(config)


MODELS = {
    model.name: model
    for model in (
        WholeModel(
            "deformable_detr",
            "Deformable DETR, ResNet-50, 800 x 1333",
            deformable_detr,
            (800, 1333),
            encoder="model.encoder",
        ),
        WholeModel("rt_detr", "RT-DETR, ResNet-50, 640 x 640", _rt_detr, (640, 640)),
        WholeModel("rt_detr_v2", "RT-DETRv2, ResNet-50, 640 x 640", _rt_detr_v2, (640, 640)),
        WholeModel("d_fine", "D-FINE, HGNetV2, 640 x 640", _d_fine, (640, 640)),
        WholeModel(
            "mask2former",
            "Mask2Former, Swin-T, 640 x 640",
            _mask2former,
            (640, 640),
            outputs=("class_queries_logits", "masks_queries_logits"),
            segments=True,
            exact=True,  # its decoder looks where a mask is above a half: rounding moves single pixels over that
        ),
        WholeModel(
            "grounding_dino",
            "Grounding DINO, Swin-T, 800 x 1333 (trained at 480 x 800)",
            _grounding_dino,
            (800, 1333),
            outputs=("last_hidden_state",),  # its logits are -inf beyond the text
            has_text=True,
            training_pixels=(480, 800),
            exact=True,  # else rounding decides which of many like proposals become queries
        ),
    )
}
