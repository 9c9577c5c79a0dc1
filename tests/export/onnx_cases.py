"""What tests of exported files share: a model with every kind of call, its inputs, and a file run by ONNX Runtime."""

import torch
from torch import nn

from deform_attn import deformable_attention, multi_scale_deformable_attention, use_backend
from deform_attn.export.nested import tensors
from tolerances import assert_close

M, D, COUNTS = 2, 3, (3, 1)
EXAMPLE, ODD, LARGE = ((4, 6), (2, 5)), ((5, 3), (1, 7)), ((9, 4), (6, 11))  # sizes of maps


class Calls(nn.Module):
    """Both entry points, with every option of both, of maps whose sizes come from their shapes or from a tensor.

    A form of nodes has bilinear reads of zeros alone: with `plain=False` so has this.
    """

    def __init__(self, plain=True):
        super().__init__()
        options = {"interpolation": "nearest"}, {"padding_mode": "border"}
        self.nearest, self.border = options if plain else ({}, {})

    def forward(self, maps, spatial_shapes, points, boxes, offsets, logits, locations, weights):
        value = torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2).unflatten(-1, (M, D))  # [N, S, M, D]
        shapes, mask = [x.shape[2:] for x in maps], value[..., 0, 0] > 1
        fused, classic = (offsets, logits), (locations, weights)
        return {
            "at_points": deformable_attention(
                value, shapes, points, *fused, num_points=COUNTS, padding_mask=mask, **self.border
            ),
            "at_boxes": deformable_attention(
                value, spatial_shapes, boxes, *fused, num_points=COUNTS, offset_scale=0.7, **self.nearest
            ),
            "classic": multi_scale_deformable_attention(
                value, shapes, *classic, num_points=COUNTS, **self.nearest | self.border
            ),
            "sized": multi_scale_deformable_attention(value, spatial_shapes, *classic, num_points=COUNTS),
        }


def draw(shapes, batch=2, queries=5, dtype=torch.float32):
    """Return the arguments of `Calls`: references and locations on the border and outside are among them."""
    generator = torch.Generator().manual_seed(batch)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    T = sum(COUNTS)
    locations = 0.5 + normal(batch, queries, M, T, 2)
    (H, W), _ = shapes
    locations[:, 0, 0, :3] = torch.tensor([[0, 1], [-0.5 / W, 1 - 0.5 / H], [1 + 0.5 / W, 1e9]])
    boxes = torch.cat((normal(batch, queries, 1, 2), normal(batch, queries, 1, 2).abs()), -1)
    return (
        [normal(batch, M * D, *shape) for shape in shapes],
        torch.tensor(shapes),
        normal(batch, queries, 2),
        boxes,
        normal(batch, queries, M, T, 2),
        normal(batch, queries, M, T),
        locations,
        normal(batch, queries, M, T),
    )


def doubled(arguments):
    """Return arguments in float64."""
    return [
        [x.double() for x in each] if isinstance(each, list) else each.double() if each.is_floating_point() else each
        for each in arguments
    ]


def run_file(file, arguments):
    """Return, by name, what ONNX Runtime makes of the tensors in `arguments`."""
    import onnxruntime

    from deform_attn.export.onnxruntime import session_options

    session = onnxruntime.InferenceSession(file, session_options(), providers=["CPUExecutionProvider"])
    given = zip(session.get_inputs(), tensors(arguments), strict=True)
    results = session.run(None, {each.name: tensor.numpy() for each, tensor in given})
    names = [each.name for each in session.get_outputs()]
    return {name: torch.from_numpy(result) for name, result in zip(names, results, strict=True)}


def assert_right_for_any_sizes(file):
    """Judge a file of `Calls` in float32 by the reference in float64, for other batches, queries and sizes of maps."""
    for shapes, batch, queries in ((EXAMPLE, 2, 5), (ODD, 1, 7), (LARGE, 3, 1)):
        arguments = draw(shapes, batch, queries)
        with use_backend("reference"):
            expected = Calls()(*doubled(arguments))
        actual = run_file(file, arguments)
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert_close(actual[name], tensor, torch.float32)
