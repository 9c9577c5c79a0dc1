"""The attention: what runs in place of a stock module's forward, whatever its family.

"Discrete" sampling reads the pixel floor(location * size + 0.5), clamped to the map, where `deform_attn` reads
floor(location * size) with interpolation "nearest": the same pixel, once all references have moved by half a pixel.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]  # public, but torch does not list it

from deform_attn import tracing
from deform_attn.functional import deformable_attention
from deform_attn.interop import errors
from deform_attn.interop.transformers.attention_weights import attention_weights, weights_asked_for
from deform_attn.interop.transformers.families import RULES
from deform_attn.interop.transformers.rules import OUTPUT_ATTENTIONS, Form
from deform_attn.interop.unprojected import unprojected
from deform_attn.recording import Sampling, sampling_of
from deform_attn.shape_checks import Pairs, spatial_shapes_of

_RULES = {rule.family: rule for rule in RULES}


def forward(module: Any, family: str, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Return `[N, Q, C]`, and the attention weights as the stock module shapes them if somebody asks for them.

    `family` is that of the module's rule; what follows are the arguments of the stock forward.
    """
    rule = _RULES[family]
    form = rule.form
    call, layout = _read(form, args, kwargs), form.layout(module)
    offsets, logits = _offsets_and_logits(module, call.queries)
    weights = None
    if weights_asked_for(module, call.output_attentions, rule.tellers):
        weights = attention_weights(logits)
        if not form.flat_weights:
            weights = weights.unflatten(-1, (len(layout.num_points), -1))  # [N, Q, M, L, P]
    references, discrete = call.reference_points, layout.method == "discrete"
    if discrete:
        # Without a path back: so their projection gets no gradient, rather than zeros, which an optimiser would decay.
        offsets, references = offsets.detach(), _half_a_pixel_on(references.detach(), call.spatial_shapes)
    projects = "value_proj" in form.attributes
    value: Tensor = call.features
    context: AbstractContextManager[Any] = nullcontext()
    if projects:
        value = module.value_proj(value)
    else:
        value, context = unprojected(value, logits, discrete)
    with context:
        heads = deformable_attention(
            value.unflatten(-1, (module.n_heads, -1)),  # [N, S, M, D]
            call.spatial_shapes,
            references,
            offsets,
            logits,
            num_points=layout.num_points,
            padding_mask=call.padding_mask,
            offset_scale=layout.offset_scale,
            interpolation="nearest" if discrete else "bilinear",
            padding_mode="border" if discrete else "zeros",
        )
    return module.output_proj(heads) if projects else heads, weights


def compute_sampling(module: Any, family: str, *args: Any, **kwargs: Any) -> tuple[Sampling, Pairs, tuple[int, ...]]:
    """Return where `forward` looks for the same arguments, the sizes of the maps, and the points on each.

    `deform_attn.record` asks it.
    """
    form = _RULES[family].form
    call, layout = _read(form, args, kwargs), form.layout(module)
    offsets, logits = _offsets_and_logits(module, call.queries)
    num_points = tuple(layout.num_points)
    shapes = spatial_shapes_of(call.spatial_shapes)
    sampling = sampling_of(shapes, call.reference_points, offsets, logits, num_points, layout.offset_scale)
    return sampling, shapes, num_points


class _Call(NamedTuple):
    """A call in our terms."""

    queries: Tensor  # [N, Q, C], with their position embeddings
    features: Tensor  # [N, S, C]
    reference_points: Tensor  # [N, Q, L or 1, 2 or 4]
    spatial_shapes: Any
    padding_mask: Tensor | None  # [N, S], True = padding
    output_attentions: bool | None


def _read(form: Form, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    """Return a call of the stock forward in our terms."""
    errors.few_enough(args, form.arguments)
    given = dict(zip(form.arguments, args, strict=False)) | kwargs
    queries, features, mask = given["hidden_states"], given["encoder_hidden_states"], given.get("attention_mask")
    images = features.shape[0]
    if given.get("position_embeddings") is not None:
        queries = queries + given["position_embeddings"]
    if mask is not None:
        mask = _for_each_image(mask if form.padding_is_true else ~mask, images)
    return _Call(
        queries,
        features,
        _for_each_image(given["reference_points"], images),
        _sizes(given.get("spatial_shapes_list"), given.get("spatial_shapes")),
        mask,
        given.get(OUTPUT_ATTENTIONS),
    )


def _sizes(spatial_shapes_list: Any, spatial_shapes: Tensor | None) -> Any:
    """Return the sizes (H, W) of the maps; a list needs no look into a tensor and goes first."""
    if spatial_shapes_list is None:
        return spatial_shapes
    pairs = [(H, W) for H, W in spatial_shapes_list]
    if pairs and isinstance(pairs[0][0], Tensor) and not is_tracing():
        return [(H.item(), W.item()) for H, W in pairs]
    return pairs


def _for_each_image(tensor: Tensor, images: Any) -> Tensor:
    """Return a tensor that may hold one entry for all images with one for each, without a copy."""
    if isinstance(images, Tensor):  # as torch.jit.trace has sizes
        return tracing.expanded(tensor, images)
    return tensor if tensor.shape[0] != 1 or images == 1 else tensor.expand(images, *tensor.shape[1:])


def _offsets_and_logits(module: Any, queries: Tensor) -> tuple[Tensor, Tensor]:
    offsets = module.sampling_offsets(queries).unflatten(-1, (module.n_heads, -1, 2))  # [N, Q, M, T, 2]
    return offsets, module.attention_weights(queries).unflatten(-1, (module.n_heads, -1))  # [N, Q, M, T]


def _half_a_pixel_on(references: Tensor, spatial_shapes: Any) -> Tensor:
    """Return `references [N, Q, L or 1, 2 or 4]` half a pixel of their level to the right and down."""
    sizes = tracing.sizes(spatial_shapes) if is_tracing() else spatial_shapes
    references = references.to(torch.promote_types(references.dtype, torch.float32))
    if isinstance(sizes, Tensor) and is_tracing():
        columns = sizes.flip(-1).clamp(min=1).to(references)  # [L, 2]
    else:
        pairs = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        columns = references.new_tensor([(max(W, 1), max(H, 1)) for H, W in pairs])  # [L, 2]
    centres = references[..., :2] + 0.5 / columns  # [N, Q, L, 2]
    return torch.cat((centres, references[..., 2:].expand(*centres.shape[:3], -1)), dim=-1)
