"""What the real modules were given when their numbers were recorded: parameters and inputs from seeds, by family."""

import random
from dataclasses import dataclass, field

import torch

SHAPES = [(2, 3), (4, 1)]
N, Q, C, M, LEVELS, POINTS = 2, 2, 4, 2, 2, 2
S = sum(h * w for h, w in SHAPES)


def numbers(seed, *shape, low=-1.0, high=1.0):
    """Return even numbers in float64, the same for a seed wherever it runs, which torch does not promise."""
    source = random.Random(seed)
    count = torch.Size(shape).numel()
    return torch.tensor([source.uniform(low, high) for _ in range(count)], dtype=torch.float64).reshape(shape)


def redraw(module):
    """Draw every parameter anew, in float64: offsets of about a pixel, weights that are not alike."""
    module.double()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(module.named_parameters())):
            scale = 0.3 if name.startswith("sampling_offsets") else 0.8
            parameter.copy_(scale * numbers(100 + i, *parameter.shape))
    return module


def points(levels=LEVELS):
    """Return reference points `[N, Q, levels, 2]`, each level's its own."""
    return numbers(1, N, Q, levels, 2, low=0.1, high=0.9)


def boxes(levels=LEVELS):
    """Return reference boxes `[N, Q, levels, 4]`."""
    return torch.cat([points(levels), numbers(2, N, Q, levels, 2, low=0.2, high=0.8)], dim=-1)


def padding():
    """Return `[N, S]`, where two pixels of the second picture are padding, a level's last ones each."""
    mask = torch.zeros(N, S, dtype=torch.bool)
    mask[1, [5, 9]] = True
    return mask


def sizes():
    """Return the sizes and the starts of the levels as the extensions take them."""
    shapes = torch.tensor(SHAPES)
    return shapes, torch.tensor([0, *(shapes.prod(1).cumsum(0)[:-1]).tolist()])


@dataclass(frozen=True)
class Call:
    """A call: the arguments that have a gradient, by name, those that have none, and what the module is built with."""

    tensors: dict
    others: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)


def original(references, mask=None, **options):
    """Return a call in the form of the original repository."""
    shapes, starts = sizes()
    tensors = {"query": numbers(3, N, Q, C), "reference_points": references, "input_flatten": numbers(4, N, S, C)}
    others = {"input_spatial_shapes": shapes, "input_level_start_index": starts, "input_padding_mask": mask}
    return Call(tensors, others, {"d_model": C, "n_levels": LEVELS, "n_heads": M, "n_points": POINTS, **options})


def openmmlab(references, channels, *, mask=None, batch_first=False, identity=True, **options):
    """Return a call in the form of mmcv; `channels` is what the argument for them is called."""
    shapes, starts = sizes()
    tensors = {"query": numbers(3, N, Q, C), "value": numbers(4, N, S, C), "query_pos": numbers(5, N, Q, C)}
    if identity:
        tensors["identity"] = numbers(6, N, Q, C)
    if not batch_first:
        tensors = {name: tensor.transpose(0, 1).contiguous() for name, tensor in tensors.items()}
    tensors["reference_points"] = references
    others = {"key_padding_mask": mask, "spatial_shapes": shapes, "level_start_index": starts}
    sizes_of_module = {channels: C, "num_heads": M, "num_levels": LEVELS, "num_points": POINTS}
    return Call(tensors, others, {**sizes_of_module, "batch_first": batch_first, **options})


def decoder(shapes, method):
    """Return a call in the form of D-FINE's decoder: value a list of `[N, M, D, H*W]`."""
    value = numbers(4, N, M, C // M, sum(h * w for h, w in shapes)).split([h * w for h, w in shapes], dim=-1)
    tensors = {"query": numbers(3, N, Q, C), "reference_points": boxes(1), "value": list(value)}
    options = {"embed_dim": C, "num_heads": M, "num_levels": LEVELS, "num_points": [1, 2], "method": method}
    return Call(tensors, {"value_spatial_shapes": shapes}, options)


def rtdetrv2():
    """Return a call in the form of RT-DETRv2's decoder, with a mask that is true where a pixel is valid."""
    tensors = {"query": numbers(3, N, Q, C), "reference_points": boxes(1), "value": numbers(4, N, S, C)}
    others = {"value_spatial_shapes": SHAPES, "value_mask": ~padding()}
    options = {"embed_dim": C, "num_heads": M, "num_levels": LEVELS, "num_points": [1, 2], "value_shape": "reshape"}
    return Call(tensors, others, options)


def of_original(**options):
    """Return the calls of a module in the original's form."""
    return {"points": original(points(), padding(), **options), "boxes": original(boxes(), **options)}


def of_openmmlab(channels, **options):
    """Return the calls of a module in mmcv's form."""
    return {
        "points": openmmlab(points(), channels, mask=padding(), **options),
        "boxes": openmmlab(boxes(), channels, batch_first=True, **options),
    }


# The family's file of recorded numbers: its double, the class, the calls.
FAMILIES = {
    "deformable_detr": ("deformable_detr", "MSDeformAttn", of_original()),
    "dino": ("dino", "MSDeformAttn", of_original()),
    "maskdino": ("mask2former", "MSDeformAttn", of_original()),
    "mask2former": ("mask2former", "MSDeformAttn", of_original()),
    "vit_adapter": ("vit_adapter", "MSDeformAttn", of_original(ratio=0.5)),
    "dinov3_ops": ("deformable_detr", "MSDeformAttn", of_original()),
    "dinov3_segmentor": ("dinov3_segmentor", "MSDeformAttn", of_original(ratio=0.5)),
    "deimv2_adapter": ("deimv2_adapter", "MSDeformAttn", of_original(ratio=0.5)),
    "deimv2_decoder": (
        "deimv2_decoder",
        "MSDeformableAttention",
        {"boxes": decoder(SHAPES, "default"), "discrete": decoder([(3, 3), (2, 2)], "discrete")},
    ),
    "rtdetrv2_decoder": ("rtdetrv2_decoder", "MSDeformableAttention", {"boxes": rtdetrv2()}),
    "grounding_dino": (
        "grounding_dino", "MultiScaleDeformableAttention", of_openmmlab("embed_dim", identity=False),
    ),
    "detrex": ("detrex", "MultiScaleDeformableAttention", of_openmmlab("embed_dim")),
    "mmcv": ("openmmlab", "MultiScaleDeformableAttention", of_openmmlab("embed_dims", value_proj_ratio=0.5)),
}  # fmt: skip


def outputs_and_gradients(module, call):
    """Return by name the output, and the gradients of the call's tensors and of the module's parameters.

    A gradient that there is none of is left out, as a discrete read has for locations.
    """
    tensors = {}
    for name, given in call.tensors.items():
        one = isinstance(given, torch.Tensor)
        tensors[name] = given.clone().requires_grad_() if one else [x.clone().requires_grad_() for x in given]
    module.zero_grad()
    output = module(**tensors, **call.others)
    (output * numbers(7, *output.shape)).sum().backward()
    found = {"output": output.detach()}
    for name, given in tensors.items():
        gradients = [tensor.grad for tensor in ([given] if isinstance(given, torch.Tensor) else given)]
        if gradients[0] is not None:
            found[name] = torch.cat(gradients, dim=-1)
    found |= {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return found


def op(*, edges):
    """Return the arguments of the classic op: points on the maps and off, some on the lines where reads end."""
    shapes, starts = sizes()
    value, weights = numbers(8, N, S, M, C // M), numbers(9, N, Q, M, LEVELS, POINTS)
    locations = numbers(10, N, Q, M, LEVELS, POINTS, 2, low=-0.3, high=1.3)
    if edges:  # -1 and the size in pixels: of two rows, and of four rows and one column
        height, width = shapes[:, 0].double(), shapes[:, 1].double()
        for point, pixel in enumerate((-torch.ones(2, dtype=torch.float64), height)):
            locations[0, ..., point, 1] = (pixel + 0.5) / height
        locations[1, ..., 1, 0, 0] = (width[1] + 0.5) / width[1]
    return value, shapes, starts, locations, weights


def aggregation():
    """Return the arguments of Sparse4D's aggregation in float32: two cameras, two scales, points on and off the map."""
    shapes = torch.tensor([[(2, 3), (1, 2)], [(3, 2), (2, 1)]])
    starts = shapes.prod(-1).flatten().cumsum(0) - shapes.prod(-1).flatten()
    maps = numbers(11, 2, 16, 4)
    locations = numbers(12, 2, 2, 3, 2, 2, low=-0.2, high=1.2)
    locations[0, 0, 0, 0, 0] = 0.0  # on the border of the map, which does not count
    locations[0, 1, 1, 1, 1] = 1.0
    locations[1, 0, 2, 1, 0] = -0.05  # off the map by less than a pixel
    weights = numbers(13, 2, 2, 3, 2, 2, 2)
    return maps.float(), shapes, starts.reshape(2, 2), locations.float(), weights.float()


def aggregated(function):
    """Return by name what an aggregation computes, and the gradients of the tensors that have one."""
    maps, shapes, starts, locations, weights = aggregation()
    tensors = {"feature_maps": maps, "sampling_location": locations, "weights": weights}
    for tensor in tensors.values():
        tensor.requires_grad_()
    output = function(maps, shapes, starts, locations, weights)
    (output * numbers(7, *output.shape).float()).sum().backward()
    return {"output": output.detach()} | {name: tensor.grad for name, tensor in tensors.items()}
