"""Sizes as a tensor in compiled and exported graphs: an input of one graph for all image sizes, judged when it runs."""

import io

import pytest
import torch
from torch import nn
from torch.export import Dim

from deform_attn import MultiScaleDeformableAttention, deformable_attention, multi_scale_deformable_attention

SIZES = [[(6, 9), (3, 5)], [(8, 5), (4, 3)], [(7, 11), (5, 2)], [(1, 4), (9, 10)]]
M, D, P, L = 2, 3, 2, 2


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class OriginalAttention(nn.Module):
    """The module as the authors of Deformable DETR have it, around the classic op."""

    def __init__(self):
        super().__init__()
        self.sampling_offsets = nn.Linear(M * D, M * L * P * 2)
        self.attention_weights = nn.Linear(M * D, M * L * P)
        self.value_proj = nn.Linear(M * D, M * D)
        self.output_proj = nn.Linear(M * D, M * D)

    def forward(self, query, reference_points, features, spatial_shapes, padding_mask=None):
        batch, queries, _ = query.shape
        value = self.value_proj(features)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.view(batch, features.shape[1], M, D)
        offsets = self.sampling_offsets(query).view(batch, queries, M, L, P, 2)
        weights = self.attention_weights(query).view(batch, queries, M, L * P).softmax(-1)
        offset_normalizer = torch.stack([spatial_shapes[..., 1], spatial_shapes[..., 0]], -1)
        locations = reference_points[:, :, None, :, None, :] + offsets / offset_normalizer[None, None, None, :, None, :]
        weights = weights.view(batch, queries, M, L, P)
        return self.output_proj(multi_scale_deformable_attention(value, spatial_shapes, locations, weights))


class Function(nn.Module):
    """A function as a module, which alone torch.export takes."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def flat(value, spatial_shapes, locations, weights):
    """Call the classic op on points that are not grouped by level, counted per level."""
    locations, weights = locations.flatten(3, 4), weights.flatten(3)
    return multi_scale_deformable_attention(value, spatial_shapes, locations, weights, num_points=[1, 2 * P - 1])


def built(kind):
    """Return a function or module that takes what `draw` gives."""
    torch.manual_seed(0)
    if kind in ("module", "original"):
        own = MultiScaleDeformableAttention(M * D, num_heads=M, num_levels=L, num_points=P)
        module = own if kind == "module" else OriginalAttention()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
        return module
    return {"fused": deformable_attention, "classic": multi_scale_deformable_attention, "flat": flat}[kind]


def draw(kind, shapes, batch=2, queries=5, dtype=torch.int64):
    """Return tensors, the sizes among them, to call it with."""
    generator = torch.Generator().manual_seed(batch + queries)

    def normal(*shape):
        return torch.randn(shape, generator=generator).requires_grad_()

    S, sizes = sum(H * W for H, W in shapes), torch.tensor(shapes, dtype=dtype)
    references = torch.rand(batch, queries, L, 2, generator=generator)
    if kind in ("module", "original"):
        return normal(batch, queries, M * D), references, normal(batch, S, M * D), sizes
    offsets = normal(batch, queries, M, L, P, 2)
    if kind == "fused":
        return normal(batch, S, M, D), sizes, references, offsets, normal(batch, queries, M, L * P)
    locations = torch.rand(offsets.shape, generator=generator).requires_grad_()
    return normal(batch, S, M, D), sizes, locations, normal(batch, queries, M, L, P)


def place_of_sizes(kind):
    return 3 if kind in ("module", "original") else 1


def with_sizes(kind, args, sizes):
    """Return the arguments with other sizes, a tensor or pairs."""
    place = place_of_sizes(kind)
    return *args[:place], sizes, *args[place + 1 :]


def results(function, args):
    output = function(*args)
    leaves = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad]
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    return [output.detach(), *torch.autograd.grad(output.sin().sum(), [*leaves, *parameters])]


def check_equal_to_eager(kind, compiled, function, args):
    """Compare with the function in eager mode, called with int pairs where it takes them."""
    sizes = args[place_of_sizes(kind)]
    eager = args if kind == "original" else with_sizes(kind, args, [tuple(pair) for pair in sizes.tolist()])
    actual, expected = results(compiled, args), results(function, eager)
    assert len(actual) == len(expected) > 3
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def wrong_for(shapes):
    """Return sizes that do not fit the S pixels of these levels: too many, too few, negative, beyond 31 and 64 bits."""
    first, (H, W) = shapes
    S = first[0] * first[1] + H * W
    wrong = [[first, (H, W + 1)], [first, (H, W - 1)], [first, (-H, W)], [first, (-H, -W)]]
    return [*wrong, [(S, 1), (0, 2**31)], [(2**32, 2**32), (S, 1)], [(2**32 + S, 1), (0, 0)]]


def eager_error(function, args):
    """Return the text of the error that eager mode raises."""
    with pytest.raises(ValueError, match=r"^spatial_shapes: expected ") as caught:
        function(*args)
    return str(caught.value)


class Counted:
    """A compiler that counts its graphs, and the ops of ours and their sizes in them; `aot_eager` finishes the work."""

    def __init__(self):
        self.graphs, self.ops = 0, []

    def __call__(self, graph, examples):
        self.graphs += 1
        self.ops += [node.target for node in graph.graph.nodes if "deform_attn" in str(node.target)]
        return torch._dynamo.lookup_backend("aot_eager")(graph, examples)


@pytest.mark.parametrize("kind", ["fused", "module", "original"])
def test_one_graph_serves_all_image_sizes_forward_and_backward_and_judges_them_when_it_runs(kind):
    function, counted = built(kind), Counted()
    compiled = torch.compile(function, fullgraph=True, backend=counted, dynamic=True)
    graphs = []
    for i, shapes in enumerate(SIZES):
        # Of two numbers that are equal at first, torch makes one; these differ from those of heads and channels.
        args = draw(kind, shapes, batch=9 + i, queries=13 + 2 * i)
        check_equal_to_eager(kind, compiled, function, args)
        graphs.append(counted.graphs)
    expected = compiled(*args).detach()
    for shapes in wrong_for(SIZES[-1]):
        wrong = with_sizes(kind, args, torch.tensor(shapes))
        with pytest.raises(RuntimeError) as caught:
            compiled(*wrong)
        assert str(caught.value) == eager_error(function, wrong)
        assert torch.equal(compiled(*args), expected)
    # Torch compiles the first graph twice where a call has a float, as `offset_scale` is.
    assert graphs == [2 if kind in ("fused", "module") else 1] * len(SIZES)
    assert counted.graphs == graphs[0] == len(counted.ops)
    assert {op._overloadname for op in counted.ops} == {"Tensor"}


@pytest.mark.parametrize("kind", ["fused", "original"])
def test_other_numbers_in_sizes_of_as_many_pixels_need_no_other_graph_without_dynamic_shapes(kind):
    function, counted = built(kind), Counted()
    compiled = torch.compile(function, fullgraph=True, backend=counted, dynamic=False)
    args = draw(kind, SIZES[0])  # 69 pixels
    for shapes in (SIZES[0], [(9, 6), (5, 3)], [(1, 15), (54, 1)], [(68, 1), (1, 1)]):
        check_equal_to_eager(kind, compiled, function, with_sizes(kind, args, torch.tensor(shapes)))
    assert counted.graphs == 1


def test_the_count_of_graphs_sees_another_one():
    function, counted = built("classic"), Counted()
    compiled = torch.compile(function, fullgraph=True, backend=counted, dynamic=False)
    for shapes in SIZES[:2]:
        compiled(*draw("classic", shapes))
    assert counted.graphs == 2


def test_the_same_graph_takes_the_numbers_that_a_tensor_has_when_it_runs():
    function = built("classic")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    args = draw("classic", SIZES[0])
    for shapes in (SIZES[0], [(9, 6), (5, 3)], [(23, 3), (0, 4)]):
        args[1].copy_(torch.tensor(shapes))
        torch.testing.assert_close(compiled(*args), function(args[0], shapes, *args[2:]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8], ids=str)
def test_sizes_of_other_integer_dtypes_count_pixels_beyond_it(dtype):
    function, shapes = built("classic"), [(13, 20), (3, 5)]  # 260 pixels
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    check_equal_to_eager("classic", compiled, function, draw("classic", shapes, dtype=dtype))


@pytest.mark.parametrize("kind", ["classic", pytest.param("original", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # by torch itself
def test_inductor_gives_what_eager_gives_and_judges(kind):
    function = built(kind)
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for shapes in SIZES[:2]:
        check_equal_to_eager(kind, compiled, function, draw(kind, shapes))
    args = with_sizes(kind, draw(kind, SIZES[0]), torch.tensor(wrong_for(SIZES[0])[0]))
    with pytest.raises(RuntimeError, match=r"spatial_shapes: expected "):
        compiled(*args)


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        (torch.tensor(SIZES[0]).float(), "float32"),
        (torch.tensor([6, 9]), r"\[2\]"),
        (torch.tensor(SIZES[0])[..., None], r"\[2, 2, 1\]"),
        (torch.tensor([(6, 9, 1), (3, 5, 1)]), r"\[2, 3\]"),
        (torch.zeros(0, 2, dtype=torch.int64), "at least one pair"),
        (torch.tensor([*SIZES[0], (0, 0)]), r"L = 3"),
        (torch.tensor([(23, 3)]), r"L = 1"),
    ],
    ids=lambda wrong: f"{wrong.dtype}{list(wrong.shape)}" if isinstance(wrong, torch.Tensor) else None,
)
def test_a_tensor_of_another_kind_or_shape_is_refused_while_compiling_with_the_argument(wrong, shown):
    args = draw("classic", SIZES[0])
    compiled = torch.compile(built("classic"), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=rf"spatial_shapes.*{shown}|{shown}.*spatial_shapes"):
        compiled(*with_sizes("classic", args, wrong))


def test_compiled_autocast_takes_a_tensor_of_sizes():
    function, args = built("classic"), draw("classic", SIZES[0])
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = results(compiled, args), results(function, args)
    assert actual[0].dtype == torch.bfloat16
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_reference_compiles_with_a_tensor_of_sizes():
    def function(*args):
        return multi_scale_deformable_attention(*args, backend="reference")

    compiled, args = torch.compile(function, fullgraph=True, backend="aot_eager"), draw("classic", SIZES[0])
    with torch.no_grad():
        for shapes in (SIZES[0], [(9, 6), (5, 3)]):
            actual = compiled(*with_sizes("classic", args, torch.tensor(shapes)))
            torch.testing.assert_close(actual, function(*with_sizes("classic", args, shapes)))


def test_a_derivative_of_torch_func_compiles_with_a_tensor_of_sizes():
    value, sizes, locations, weights = (tensor.detach() for tensor in draw("classic", SIZES[0]))

    def gradient(value, sizes, locations):
        def number(value, locations):
            return multi_scale_deformable_attention(value, sizes, locations, weights).sin().sum()

        return torch.func.grad(number, (0, 1))(value, locations)

    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(value, sizes, locations), gradient(value, sizes, locations), strict=True):
        torch.testing.assert_close(a, b)


def exported(kind, strict):
    """Return the function as a module, and its program for any batch, count of queries and image size."""
    function = built(kind)
    module = function if isinstance(function, nn.Module) else Function(function)
    batch, queries = Dim("batch"), Dim("queries")
    axes = {0: batch, 1: queries}
    dynamic = [{0: batch, 1: Dim("pixels")}, None, *[axes] * (3 if kind == "fused" else 2)]
    if kind in ("module", "original"):
        dynamic = [axes, axes, {0: batch, 1: Dim("pixels")}, None]
    dynamic_shapes = tuple(dynamic) if isinstance(function, nn.Module) else (tuple(dynamic),)
    args = tuple(arg.detach() for arg in draw(kind, SIZES[0]))
    return module, torch.export.export(module, args, dynamic_shapes=dynamic_shapes, strict=strict)


@pytest.mark.parametrize(
    ("kind", "strict"),
    [("fused", False), ("fused", True), ("flat", False), ("module", False), ("original", False), ("original", True)],
)
def test_an_exported_program_has_the_sizes_as_an_input_and_is_right_for_all_of_them(kind, strict):
    module, program = exported(kind, strict)
    ops = [node.target for node in program.graph.nodes if "deform_attn" in str(node.target)]
    assert [op._overloadname for op in ops] == ["Tensor"]
    runs = program.module()
    for i, shapes in enumerate(SIZES):
        args = draw(kind, shapes, batch=2 + i, queries=5 + 2 * i)
        torch.testing.assert_close(runs(*args), module(*args))
    args = draw(kind, SIZES[0])
    for shapes in wrong_for(SIZES[0]):
        wrong = with_sizes(kind, args, torch.tensor(shapes))
        with pytest.raises(RuntimeError) as caught:
            runs(*wrong)
        assert str(caught.value) == eager_error(module, wrong)


@pytest.mark.parametrize("kind", ["original", "fused"])
def test_an_exported_program_with_sizes_as_an_input_is_saved_and_loaded(kind):
    module, program = exported(kind, False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for shapes in SIZES[:2]:
        args = draw(kind, shapes, batch=3)
        torch.testing.assert_close(loaded(*args), module(*args))


def test_an_exported_program_with_sizes_as_an_input_can_be_trained():
    module, program = exported("original", False)
    runs = program.module()
    args = draw("original", SIZES[1], batch=3)
    runs(*args).sin().sum().backward()
    module(*args).sin().sum().backward()
    for name, parameter in runs.named_parameters():
        torch.testing.assert_close(parameter.grad, module.get_parameter(name).grad)
        assert (parameter.grad != 0).any()


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # of torch
def test_an_exported_program_decomposes_and_stays_right():
    module, program = exported("fused", False)
    runs = program.run_decompositions().module()
    for shapes in SIZES[:2]:
        args = draw("fused", shapes, batch=3)
        torch.testing.assert_close(runs(*args), module(*args))
    with pytest.raises(RuntimeError, match=r"spatial_shapes: expected "):
        runs(*with_sizes("fused", args, torch.tensor(wrong_for(SIZES[1])[1])))


def test_sizes_made_inside_the_graph_from_the_maps_are_taken():
    def function(locations, weights, *maps):
        value = torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2).unflatten(-1, (M, D))
        return multi_scale_deformable_attention(value, torch.tensor([x.shape[2:] for x in maps]), locations, weights)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    _, _, *points = [tensor.detach() for tensor in draw("classic", SIZES[0])]
    maps = [torch.randn(2, M * D, H, W) for H, W in SIZES[0]]
    torch.testing.assert_close(compiled(*points, *maps), function(*points, *maps))


def test_sizes_changed_between_the_passes_of_a_compiled_graph_give_no_wrong_gradient():
    args = draw("classic", SIZES[0])
    output = torch.compile(built("classic"), fullgraph=True, backend="aot_eager")(*args)
    args[1].fill_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
