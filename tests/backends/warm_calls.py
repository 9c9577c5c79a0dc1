"""Warm calls: entry points and modules as functions of their tensors, called before, so that they are remembered."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cases import inputs_of, named
from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    deformable_attention,
    multi_scale_deformable_attention,
    use_backend,
)
from tolerances import assert_close

ENTRY_POINTS = ["fused", "classic"]
MODULES = ["single", "multi"]
SHAPES = [(3, 4), (2, 5)]  # of the maps of the modules


class OfMaps(torch.nn.Module):
    """A module that takes its maps as arguments of their own."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, query, points, *maps):
        return self.module(query, points, maps[0] if isinstance(self.module, DeformableAttention) else list(maps))


@dataclass(frozen=True)
class Kind:
    """A kind of call: a function of tensors alone, tensors for it, the name of the op that it runs, and its mask."""

    function: Callable
    tensors: list
    op: str
    mask: torch.Tensor | None = None

    def __call__(self, *tensors):
        return self.function(*(tensors or self.tensors))

    def on(self, backend):
        """Return the function on this backend, which is asked for by name."""

        def function(*tensors):
            with use_backend(backend):
                return self.function(*tensors)

        return function

    def leaves(self):
        """Return copies of the tensors that require grad."""
        return [tensor.clone().requires_grad_() for tensor in self.tensors]


def kind_of(form, dtype=torch.float64, masked=True):
    """Return one of the entry points or modules on tensors of its own; the fused entry point has a mask."""
    if form in MODULES:
        return _kind_of_module(form, dtype)
    inputs = inputs_of(replace(named("small points"), masked=masked), dtype)
    if form == "fused":
        entry_point, tensors, given = deformable_attention, inputs.fused_tensors, inputs.fused_options
    else:
        entry_point, tensors, given = multi_scale_deformable_attention, inputs.classic_tensors, inputs.classic_options

    def function(value, *others, **options):
        return entry_point(value, inputs.spatial_shapes, *others, **{**given, **options})

    tensors = [tensor.clone() for tensor in tensors]
    return Kind(function, tensors, entry_point.__name__, given.get("padding_mask"))


def _kind_of_module(form, dtype):
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if form == "single":
        module = DeformableAttention(4, num_heads=2, num_points=1)
        maps = [normal(1, 4, *SHAPES[0])]
    else:
        module = MultiScaleDeformableAttention(4, num_heads=2, num_levels=2, num_points=1)
        maps = [normal(1, 4, *shape) for shape in SHAPES]
    for parameter in module.to(dtype).parameters():
        parameter.data.copy_(normal(*parameter.shape) / 2)
        parameter.requires_grad_(False)
    return Kind(OfMaps(module), [normal(1, 3, 4), normal(1, 3, 2).sigmoid(), *maps], "deformable_attention")


def bent(function):
    """Return a number from the output in which second derivatives do not vanish."""
    return lambda *tensors: function(*tensors).sin().sum()


def check(actual, expected, dtype=torch.float64):
    """Compare outputs, gradients or tangents, of which none may be zero all over."""
    actual, expected = torch.utils._pytree.tree_leaves(actual), torch.utils._pytree.tree_leaves(expected)
    assert len(actual) == len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        assert (e != 0).any(), "there is nothing to compare with"
        assert (a != 0).any()
        assert_close(a, e, dtype)


def results(kind, backend=None, function=None):
    """Return the output and the gradients of all tensors."""
    leaves = kind.leaves()
    if function is None:
        function = kind.on(backend) if backend else kind.function
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output.sin().sum(), leaves)]


class Ops(TorchDispatchMode):
    """A mode that lists the ops of ours that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "deform_attn":
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def targets(graph_module):
    """Return the ops of ours in a graph, and in the graphs inside it."""
    graphs = [module.graph for module in graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [str(n.target) for g in graphs for n in g.nodes if str(n.target).startswith("deform_attn.")]
