"""The op of a plugin's node, by its documented interface, in plain operators: for runtimes that have no such plugin.

Written by loops over the levels and the four corners, without any of the package's own code.
"""

import torch
from torch import nn
from torch.export import Dim


class Plugin(nn.Module):
    """From value [N, S, M, D], the sizes [L, 2] and starts [L] of the maps, locations and weights [N, Q, M, L, P].

    It returns `[N, Q, M, D]`, or `[N, Q, M*D]` with `flat`.
    """

    def __init__(self, flat):
        super().__init__()
        self.flat = flat

    def forward(self, value, sizes, starts, locations, weights):
        N, Q, M, L, P, _ = locations.shape
        by_head = value.transpose(1, 2)  # [N, M, S, D]
        output = 0
        for level in range(L):
            H, W = sizes[level, 0], sizes[level, 1]
            x = locations[:, :, :, level, :, 0] * W - 0.5  # [N, Q, M, P]
            y = locations[:, :, :, level, :, 1] * H - 0.5
            for column, row in ((x.floor() + right, y.floor() + below) for below in (0, 1) for right in (0, 1)):
                inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
                share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * weights[:, :, :, level]
                pixel = torch.where(inside, row * W + column, 0).long() + starts[level]
                pixel = pixel.transpose(1, 2).reshape(N, M, Q * P, 1).expand(-1, -1, -1, value.shape[3])
                read = by_head.gather(2, pixel).reshape(N, M, Q, P, value.shape[3]).transpose(1, 2)
                output = output + (torch.where(inside, share, 0)[..., None] * read).sum(3)  # [N, Q, M, D]
        return output.flatten(2) if self.flat else output


def function(domain, name, attributes, flat):
    """Return the node `domain::name`, for two levels, as a function of ONNX."""
    from onnx import helper

    free = Dim.AUTO
    value, points = torch.rand(2, 7, 3, 4), torch.rand(2, 5, 3, 2, 6, 2)
    sizes, starts = torch.tensor([[2, 3], [1, 1]], dtype=torch.int32), torch.tensor([0, 6], dtype=torch.int32)
    axes = dict.fromkeys(range(4), free), None, None, *[dict.fromkeys((0, 1, 2, 4), free)] * 2
    arguments = value, sizes, starts, points, points[..., 0]
    with torch.no_grad():
        program = torch.export.export(Plugin(flat), arguments, dynamic_shapes=axes, strict=False)
        graph = torch.onnx.export(program, (), dynamo=True, opset_version=18, verbose=False).model_proto.graph
    constants = [helper.make_node("Constant", [], [each.name], value=each) for each in graph.initializer]
    inputs, outputs = ([each.name for each in values] for values in (graph.input, graph.output))
    nodes = [*constants, *graph.node]
    return helper.make_function(domain, name, inputs, outputs, nodes, [helper.make_opsetid("", 18)], attributes)
