"""torch.compile: one graph, forward and backward, equal to eager, and no further graph for a third image size."""

import contextlib

import pytest
import torch

from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    deformable_attention,
    encoder_reference_points,
    multi_scale_deformable_attention,
)

SIZES = [[(6, 9), (3, 5)], [(8, 5), (4, 3)], [(7, 11), (5, 2)], [(10, 4), (2, 6)]]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def draw(kind, shapes=SIZES[0], batch=2, queries=5, masked=False):
    """Return a function or module, and tensors and options to call it with."""
    generator = torch.Generator().manual_seed(sum(H * W for H, W in shapes) + batch)

    def normal(*shape):
        return torch.randn(shape, generator=generator).requires_grad_()

    M, D, P, L = 2, 3, 2, len(shapes)
    S = sum(H * W for H, W in shapes)
    references = torch.rand(batch, queries, 2, generator=generator)
    mask = torch.rand(batch, S, generator=generator) < 0.3 if masked else None
    if kind == "fused":
        tensors = normal(batch, S, M, D), shapes, references, normal(batch, queries, M, L, P, 2)
        return deformable_attention, (*tensors, normal(batch, queries, M, L * P)), {"padding_mask": mask}
    if kind == "classic":
        locations = torch.rand(batch, queries, M, L, P, 2, generator=generator).requires_grad_()
        tensors = normal(batch, S, M, D), shapes, locations, normal(batch, queries, M, L, P)
        return multi_scale_deformable_attention, tensors, {}
    torch.manual_seed(0)
    single = kind == "single"
    module = (
        DeformableAttention(6, num_heads=M, num_points=P)
        if single
        else MultiScaleDeformableAttention(6, num_heads=M, num_levels=L, num_points=[P] * L)
    )
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    maps = [normal(batch, 6, H, W) for H, W in shapes]
    query = normal(batch, queries, 6)
    if single:
        return module, (query, references, maps[0]), {}
    return module, (query, references, maps), {"padding_mask": mask}


def leaves(function, args):
    """Return all that has a gradient."""
    flat = [leaf for arg in args for leaf in (arg if isinstance(arg, list) else [arg])]
    tensors = [leaf for leaf in flat if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    return tensors + (list(function.parameters()) if isinstance(function, torch.nn.Module) else [])


def results(function, args, options, of):
    output = function(*args, **options)
    return [output.detach(), *torch.autograd.grad(output.float().sin().sum(), of)]


def check_equal_to_eager(kind, compiled, function, args, options, context=contextlib.nullcontext):
    of = leaves(function, args)
    with context():
        actual = results(compiled, args, options, of)
        expected = results(function, args, options, of)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


class Counted:
    """A compiler that counts its graphs, and which of our ops they hold; `aot_eager` finishes the work."""

    def __init__(self):
        self.graphs = 0
        self.ops = []

    def __call__(self, graph, examples):
        self.graphs += 1
        self.ops += [str(node.target) for node in graph.graph.nodes if "deform_attn" in str(node.target)]
        return torch._dynamo.lookup_backend("aot_eager")(graph, examples)


# The fused function is compared where pixels are masked with inductor, below.
@pytest.mark.parametrize(
    ("kind", "masked", "dynamic"),
    [
        ("fused", False, None),
        ("classic", False, None),
        ("single", False, None),
        ("multi", True, None),
        pytest.param("multi", False, True, marks=pytest.mark.slow),
    ],
)
def test_all_is_one_graph_with_one_op_equals_eager_and_is_not_compiled_again_after_the_second_image_size(
    kind, masked, dynamic
):
    function, _, _ = draw(kind)
    counted = Counted()
    compiled = torch.compile(function, fullgraph=True, backend=counted, dynamic=dynamic)
    for i, shapes in enumerate(SIZES):
        _, args, options = draw(kind, shapes, batch=(2, 3, 3, 4)[i], queries=(11, 13, 17, 19)[i], masked=masked)
        with torch._dynamo.config.patch(error_on_recompile=i >= 2):
            check_equal_to_eager(kind, compiled, function, args, options)
        assert counted.graphs == len(counted.ops)
        # Asked for a dynamic graph, torch takes the factor of the offsets for a symbol, too, and begins once more.
        assert counted.graphs == min(i, 1) + (2 if dynamic else 1)


def test_the_check_for_recompilation_sees_one():
    function, args, _ = draw("classic")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=False)
    compiled(*args)
    _, args, _ = draw("classic", SIZES[1])
    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(torch._dynamo.exc.RecompileError):
        compiled(*args)


@pytest.mark.parametrize(("kind", "outside"), [("fused", False), ("classic", True), ("single", False), ("multi", True)])
def test_compiled_autocast_is_eager_autocast(kind, outside):
    function, args, options = draw(kind)

    def inside(*args, **options):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function(*args, **options)

    compiled = torch.compile(function if outside else inside, fullgraph=True, backend="aot_eager")

    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    of = leaves(function, args)
    with autocast():
        expected = results(function, args, options, of)
    if outside:
        with autocast():
            actual = results(compiled, args, options, of)
    else:
        actual = results(compiled, args, options, of)
    assert actual[0].dtype == torch.bfloat16
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["fused", pytest.param("multi", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # by torch itself
def test_inductor_gives_what_eager_gives(kind):
    function, _, _ = draw(kind)
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for shapes in SIZES[:2]:
        _, args, options = draw(kind, shapes, masked=True)
        check_equal_to_eager(kind, compiled, function, args, options)


def test_inference_compiles_without_gradients():
    function, args, options = draw("multi")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*args, **options), function(*args, **options))


def test_the_reference_compiles_too():
    function, args, _ = draw("classic")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    check_equal_to_eager("classic", compiled, function, args, {"backend": "reference"})


def test_a_derivative_of_torch_func_compiles():
    _, (value, shapes, locations, weights), _ = draw("classic")

    def gradient(value, locations):
        def loss(value, locations):
            return multi_scale_deformable_attention(value, shapes, locations, weights.detach()).sin().sum()

        return torch.func.grad(loss, (0, 1))(value, locations)

    tensors = value.detach(), locations.detach()
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*tensors), gradient(*tensors), strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_derivative_of_compiled_code_is_refused_by_torch():
    function, args, _ = draw("classic")
    output = torch.compile(function, fullgraph=True, backend="aot_eager")(*args)
    (grad,) = torch.autograd.grad(output.sin().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"torch\.compile.*double backward"):
        torch.autograd.grad(grad.sum(), args[0])


def test_what_needs_the_numbers_of_a_tensor_of_shapes_is_refused_in_one_graph_with_the_advice_in_the_explanation():
    explanation = r"Explanation: .*spatial_shapes: expected pairs of ints.*got a tensor.*pass a list of int pairs"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=explanation):
        torch.compile(encoder_reference_points, fullgraph=True, backend="eager")(torch.tensor([(2, 3), (1, 2)]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by torch, after a break
def test_what_needs_the_numbers_of_a_tensor_of_shapes_reads_them_outside_the_graph_where_graphs_may_break():
    shapes = [(2, 3), (1, 2)]
    points = torch.compile(encoder_reference_points, backend="eager")(torch.tensor(shapes))
    torch.testing.assert_close(points, encoder_reference_points(shapes))


def test_sizes_above_all_maps_are_refused_while_compiling():
    function, (value, shapes, *rest), _ = draw("classic")

    def call(value, *rest):
        return function(value, [*shapes[:1], (0, 2**63 - 1)], *rest)

    with pytest.raises(Exception, match=r"spatial_shapes: expected sizes below 2\^31"):
        torch.compile(call, fullgraph=True, backend="eager")(value.detach(), *rest)
