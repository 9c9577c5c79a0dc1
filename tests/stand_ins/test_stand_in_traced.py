"""torch.jit.trace of the stand-ins: saved, loaded where only deform_attn is imported, and right for other sizes."""

import pytest
import torch

from deform_attn.stand_ins.ops import ms_deform_attn_forward
from deform_attn.stand_ins.original import MSDeformAttn, MSDeformAttnFunction

pytestmark = [
    pytest.mark.filterwarnings("error::torch.jit.TracerWarning", "ignore::torch.jit.TracerWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning"),
]
M, D, L, P = 2, 4, 2, 3
SHAPES, OTHER_SHAPES = ((3, 4), (2, 1)), ((5, 2), (4, 7))


class Masked(torch.nn.Module):
    """The module with the mask that its callers make of the sizes of images."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, query, references, features, sizes, starts):
        return self.attention(query, references, features, sizes, starts, features[..., 0] > 1)


class Op(torch.nn.Module):
    """A function of the extension, called as its callers do."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, value, sizes, starts, locations, weights):
        return self.function(value, sizes, starts, locations, weights, 64)


def cases():
    """Return by name a module and whether it takes the tensors of the original's module or those of the op."""
    torch.manual_seed(0)
    attention = MSDeformAttn(M * D, L, M, P)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return {
        "module": (attention.eval(), of_module),
        "module with a mask": (Masked(attention).eval(), of_module),
        "autograd function": (Op(MSDeformAttnFunction.apply), of_op),
        "op": (Op(ms_deform_attn_forward), of_op),
    }


def sizes_of(shapes):
    sizes = torch.tensor(shapes)
    pixels = sizes.prod(1)
    return sizes, pixels.cumsum(0) - pixels


def of_module(shapes, batch, queries):
    sizes, starts = sizes_of(shapes)
    torch.manual_seed(queries)
    features = torch.randn(batch, sum(H * W for H, W in shapes), M * D)
    return torch.randn(batch, queries, M * D), torch.rand(batch, queries, L, 2), features, sizes, starts


def of_op(shapes, batch, queries):
    sizes, starts = sizes_of(shapes)
    torch.manual_seed(queries)
    value = torch.randn(batch, sum(H * W for H, W in shapes), M, D)
    points = torch.rand(batch, queries, M, L, P, 2), torch.rand(batch, queries, M, L, P)
    return value, sizes, starts, *points


LOADED = """
import sys, torch, deform_attn
for file in sys.argv[1:]:
    arguments, expected = torch.load(file + ".tensors")
    torch.testing.assert_close(torch.jit.load(file)(*arguments), expected)
assert not [name for name in sys.modules if name.startswith("deform_attn.stand_ins")]
"""


def test_a_trace_runs_for_other_sizes_in_a_process_that_has_done_nothing_but_import_deform_attn(children, tmp_path):
    files = []
    for name, (module, draw) in cases().items():
        other = draw(OTHER_SHAPES, 3, 7)
        with torch.no_grad():
            torch.jit.save(torch.jit.trace(module, draw(SHAPES, 2, 5)), file := str(tmp_path / name))
            torch.save([other, module(*other)], f"{file}.tensors")
        files.append(file)
    result = children.run(LOADED, *files)
    assert result.returncode == 0, result.stderr


def test_gradients_through_a_trace_are_those_of_the_module():
    for name, (module, draw) in cases().items():
        traced, found = torch.jit.trace(module, draw(SHAPES, 2, 5)), []
        for function in (traced, module):
            arguments = draw(OTHER_SHAPES, 3, 7)
            leaves = [tensor.requires_grad_() for tensor in arguments if tensor.is_floating_point()]
            found.append(torch.autograd.grad(function(*arguments).square().sum(), leaves))
        for actual, expected in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, msg=lambda message, name=name: f"{name}: {message}")
