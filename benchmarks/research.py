"""Whole models of research code at the sizes that people use, called as those of transformers are.

The original's model is that of transformers with attentions of the original's form: the same backbone, layers, two
stages and loss. ultralytics and rfdetr build theirs themselves, with weights of their own drawing.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from benchmarks.models import WholeModel, deformable_detr
from deform_attn.stand_ins import ops


class Output(dict[str, Any]):
    """What a model returns: tensors by name, and its `loss` in training."""

    @property
    def loss(self) -> Tensor:
        """Return the loss."""
        loss: Tensor = self["loss"]
        return loss


@cache
def _eager() -> nn.Module:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    return MultiScaleDeformableAttention()


def core(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, im2col_step: int) -> Tensor:
    """Return `[N, Q, M*D]` by the original's core in Python, as transformers has it: one grid_sample a level."""
    return _eager()(value, shapes, shapes.tolist(), starts, locations, weights, im2col_step)


class Extension(Function):
    """The op of the compiled extension, for which the stand-in's two functions compute."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, im2col_step: int
    ) -> Tensor:
        """Return `[N, Q, M*D]`."""
        ctx.im2col_step = im2col_step
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return ops.ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of value, locations and weights, in the places of these."""
        tensors = *ctx.saved_tensors, grad_output.contiguous()
        of_value, of_locations, of_weights = ops.ms_deform_attn_backward(*tensors, ctx.im2col_step)
        return of_value, None, None, of_locations, of_weights, None


class MSDeformAttn(nn.Module):
    """A module of the original's form: its arguments, parameters and attributes. Its `op` is `core` unless set."""

    def __init__(self, d_model: int, n_levels: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        self.im2col_step = 64
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.op = core

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return `[N, Q, C]`; the mask is true where a pixel is padding."""
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        points = (self.n_heads, self.n_levels, self.n_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*points, 2))  # [N, Q, M, L, P, 2]
        weights = self.attention_weights(query).unflatten(-1, (self.n_heads, -1)).softmax(-1)
        references = reference_points[:, :, None, :, None]  # [N, Q, 1, L, 1, 2 or 4]
        if references.shape[-1] == 2:
            step = 1 / input_spatial_shapes.flip(-1)[:, None].to(offsets)  # [L, 1, 2], a pixel
        else:
            step = references[..., 2:] / (2 * self.n_points)
        locations = references[..., :2] + offsets * step
        sizes = input_spatial_shapes, input_level_start_index
        heads = value.unflatten(-1, (self.n_heads, -1))  # [N, S, M, D]
        return self.output_proj(self.op(heads, *sizes, locations, weights.unflatten(-1, points[1:]), self.im2col_step))


class InTransformers(nn.Module):
    """An attention of the original's form where a layer of transformers calls its own."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.attention = MSDeformAttn(own.d_model, own.n_levels, own.n_heads, own.n_points)
        self.attention.load_state_dict(own.state_dict())

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        encoder_hidden_states: Tensor,
        position_embeddings: Tensor | None = None,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Return what the attention does, and no weights; true in `attention_mask` is a pixel that is no padding."""
        query = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        mask = None if attention_mask is None else ~attention_mask
        sizes = spatial_shapes, level_start_index
        return self.attention(query, reference_points, encoder_hidden_states, *sizes, mask), None


def original(**settings: Any) -> nn.Module:
    """Return Deformable DETR with box refinement and two stages; `settings` are those of transformers' config."""
    model = deformable_detr(with_box_refine=True, two_stage=True, **settings)
    kind = "DeformableDetrMultiscaleDeformableAttention"
    for name, module in list(model.named_modules()):
        if type(module).__name__ == kind:
            model.set_submodule(name, InTransformers(module))
    return model


def use_stand_in(model: nn.Module) -> None:
    """Let the attentions of the original's form call the stand-in for their compiled extension."""
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.op = Extension.apply


class Ultralytics(nn.Module):
    """A model of ultralytics, called as one of transformers."""

    def __init__(self) -> None:
        super().__init__()
        from ultralytics.nn.tasks import RTDETRDetectionModel

        self.model = RTDETRDetectionModel("rtdetr-l.yaml", verbose=False)
        self.model.nc = self.model.yaml["nc"]  # the loss needs it; in training their trainer sets it

    def forward(self, pixel_values: Tensor, labels: list[dict[str, Tensor]] | None = None) -> Output:
        """Return boxes and scores of all layers, or the loss for `labels`, those of one image."""
        if labels is None:
            _, (boxes, scores, *_) = self.model.predict(pixel_values)
            return Output(boxes=boxes, scores=scores)
        (objects,) = labels
        classes, boxes = objects["class_labels"], objects["boxes"]
        batch = {"img": pixel_values, "cls": classes, "bboxes": boxes, "batch_idx": torch.zeros_like(classes)}
        loss, _ = self.model.loss(batch)
        return Output(loss=loss)


class RfDetr(nn.Module):
    """A model of rfdetr, called as one of transformers."""

    def __init__(self) -> None:
        super().__init__()
        from rfdetr import RFDETRNano
        from rfdetr.config import TrainConfig
        from rfdetr.models import build_criterion_from_config

        built = RFDETRNano(pretrain_weights=None, device="cpu")
        self.model = built.model.model
        self.criterion, _ = build_criterion_from_config(built.model_config, TrainConfig(dataset_dir="."))

    def forward(self, pixel_values: Tensor, labels: list[dict[str, Tensor]] | None = None) -> Output:
        """Return the last layer's logits and boxes, or the loss for `labels`."""
        targets = [{"labels": objects["class_labels"], "boxes": objects["boxes"]} for objects in labels or ()]
        outputs = self.model(pixel_values, targets or None)
        if not targets:
            return Output(logits=outputs["pred_logits"], boxes=outputs["pred_boxes"])
        losses = self.criterion(outputs, targets)
        return Output(loss=sum(weight * losses[name] for name, weight in self.criterion.weight_dict.items()))


# All of them take the queries from the best proposals: rounding decides which of many like ones these are.
RESEARCH = {
    model.name: model
    for model in (
        WholeModel(
            "original",
            "Deformable DETR of the original's form, two stages, ResNet-50, 800 x 1333 (trained at 400 x 667)",
            original,
            (800, 1333),
            encoder="model.encoder",
            exact=True,
            training_pixels=(400, 667),  # in Python a step of a whole picture takes minutes
            packages=("transformers",),
            use_stand_in=use_stand_in,
        ),
        WholeModel(
            "ultralytics",
            "RT-DETR-L of ultralytics, 640 x 640",
            Ultralytics,
            (640, 640),
            outputs=("boxes", "scores"),
            exact=True,
            packages=("ultralytics",),
        ),
        WholeModel(
            "rfdetr",
            "RF-DETR nano of rfdetr, 384 x 384",
            RfDetr,
            (384, 384),
            outputs=("logits", "boxes"),
            exact=True,
            packages=("rfdetr",),
        ),
    )
}
