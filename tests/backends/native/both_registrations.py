"""A script: prints what the ops say and compute, the same however their kernels are registered."""

import torch

import deform_attn
from cases import CASES, inputs_of
from deform_attn.torch_ops import schema

value, locations, weights = torch.ones(1, 6, 1, 3), torch.full((1, 4, 1, 1, 2, 2), 0.5), torch.ones(1, 4, 1, 1, 2)
explained = deform_attn.explain(value, [(2, 3)], locations, weights)
print(str(explained).replace("\n", " "))


def digest(tensors):
    return [
        round(
            tensor.double()
            .nan_to_num(7, 8, 9)
            .mul(torch.arange(1, 1 + tensor.numel()).view(tensor.shape))
            .sum()
            .item(),
            3,
        )
        for tensor in tensors
    ]


for case in CASES:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = inputs_of(case, dtype)
        for tensors, entry, options in (
            (inputs.classic_tensors, deform_attn.multi_scale_deformable_attention, inputs.classic_options),
            (inputs.fused_tensors, deform_attn.deformable_attention, inputs.fused_options),
        ):
            for _ in range(2):  # the second call is remembered
                leaves = [tensor.clone().requires_grad_() for tensor in tensors]
                output = entry(leaves[0], inputs.spatial_shapes, *leaves[1:], **options)
                print(case.name, digest([output, *torch.autograd.grad(output.sum(), leaves)]))
                with torch.no_grad():
                    print(case.name, digest([entry(leaves[0], inputs.spatial_shapes, *leaves[1:], **options)]))


def freed(*shape):
    tensor = torch.zeros(1, shape[0], 1, shape[1])
    tensor.untyped_storage().resize_(0)
    return tensor


shapes, counts = [2, 3], [2]
flat = locations.flatten(3, 4), weights.flatten(3, 4)
sizes = torch.tensor([[2, 3]])
double = value.double()
calls = {
    "sizes in a tensor": (schema.SAMPLE_BY_TENSOR, (value, sizes, *flat, counts, "bilinear", "zeros")),
    "float64": (schema.SAMPLE, (double, shapes, *flat, counts, "nearest", "border")),
    "float64 points": (schema.SAMPLE, (value, shapes, flat[0].double(), flat[1], counts, "bilinear", "zeros")),
    "freed": (schema.SAMPLE, (freed(6, 3), shapes, *flat, counts, "bilinear", "zeros")),
    "freed and turned": (schema.SAMPLE, (freed(3, 6).transpose(1, 3), shapes, *flat, counts, "bilinear", "zeros")),
    "wrong sizes": (schema.SAMPLE, (value, [2, 4], *flat, counts, "bilinear", "zeros")),
    "wrong sizes in a tensor": (schema.SAMPLE_BY_TENSOR, (value, sizes + 1, *flat, counts, "bilinear", "zeros")),
    "wrong counts": (schema.SAMPLE, (value, shapes, *flat, [3], "bilinear", "zeros")),
    "wrong points": (schema.SAMPLE, (value, shapes, flat[0][:, :, :, :1], flat[1], counts, "bilinear", "zeros")),
}
raw = value, shapes, torch.rand(1, 4, 1, 2), *flat
calls |= {
    "a mask of floats": (schema.ATTEND, (*raw, torch.zeros(1, 6), 0.5, counts, "bilinear", "zeros")),
    "wrong option": (schema.SAMPLE, (value, shapes, *flat, counts, "cubic", "zeros")),
    "wrong mode": (schema.SAMPLE, (value, shapes, *flat, counts, "nearest", "")),
    "few wanted": (schema.ATTEND, (*raw, None, 0.5, counts, "bilinear", "zeros")),
}
for what, (op, args) in calls.items():
    try:
        output = op.forward(*args)
        print(what, output.dtype, digest([output, *op.backward(torch.ones_like(output), *args, [True, False, True])]))
    except RuntimeError as error:
        print(what, error)
