"""torch.export: strict and not, any batch and image size, saved and loaded; and a package of AOTInductor."""

import io

import pytest
import torch
from torch.export import Dim
from torch.utils._sympy.numbers import int_oo

from deform_attn import (
    DeformableAttention,
    MultiScaleDeformableAttention,
    deformable_attention,
    encoder_reference_points,
)

SIZES = [[(6, 9), (3, 5)], [(8, 5), (4, 3)], [(7, 11), (5, 2)]]


class Op(torch.nn.Module):
    """The function itself, on maps whose sizes come from other tensors."""

    def forward(self, value, references, offsets, logits, first, second):
        return deformable_attention(value, [first.shape, second.shape], references, offsets, logits)


def draw(kind, shapes, batch, queries=11):
    generator = torch.Generator().manual_seed(batch)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    references = torch.rand(batch, queries, 2, generator=generator)
    if kind == "function":
        S = sum(H * W for H, W in shapes)
        points = normal(batch, queries, 2, 2, 4, 2), normal(batch, queries, 2, 8)
        return normal(batch, S, 2, 3), references, *points, *[torch.empty(shape) for shape in shapes]
    maps = [normal(batch, 6, H, W) for H, W in shapes]
    query = normal(batch, queries, 6)
    return query, references, maps[0] if kind == "single" else maps


def build(kind):
    """Return a module, and which of its sizes may change."""
    torch.manual_seed(0)
    module = {
        "function": Op,
        "single": lambda: DeformableAttention(6, num_heads=2, num_points=4),
        "multi": lambda: MultiScaleDeformableAttention(6, num_heads=2, num_levels=2, num_points=4),
    }[kind]()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    batch, queries = Dim("batch", min=2, max=64), Dim("queries", min=2, max=1024)
    sides = [Dim(f"{side}{level}", min=2, max=512) for level in (1, 2) for side in "HW"]
    rows = {0: batch, 1: queries}
    if kind == "function":
        pixels = {0: batch, 1: Dim.AUTO}
        levels = [{0: sides[0], 1: sides[1]}, {0: sides[2], 1: sides[3]}]
        return module, (pixels, rows, rows, rows, *levels)
    first, second = {0: batch, 2: sides[0], 3: sides[1]}, {0: batch, 2: sides[2], 3: sides[3]}
    return module, (rows, rows, first if kind == "single" else [first, second])


@pytest.mark.parametrize(
    ("kind", "strict"),
    [
        ("function", False),
        ("single", True),
        ("multi", False),
        ("multi", True),
        pytest.param("function", True, marks=pytest.mark.slow),
        pytest.param("single", False, marks=pytest.mark.slow),
    ],
)
def test_an_exported_module_is_saved_loaded_and_equal_for_any_batch_and_image_size(kind, strict):
    module, dynamic_shapes = build(kind)
    args = draw(kind, SIZES[0], 2)
    if strict and kind == "function":
        dynamic_shapes = [dynamic_shapes[i] for i in range(6)]
    program = torch.export.export(module, args, dynamic_shapes=tuple(dynamic_shapes), strict=strict)
    assert sum("deform_attn" in str(node.target) for node in program.graph.nodes) == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for i, shapes in enumerate(SIZES):
        args = draw(kind, shapes, 2 + i, 11 + 2 * i)
        torch.testing.assert_close(loaded(*args), module(*args))


@pytest.mark.parametrize("strict", [False, True])
def test_the_checks_bound_no_size_of_an_exported_program(strict):
    module, _ = build("multi")
    first, second = ({axis: Dim(f"{side}{level}") for axis, side in ((2, "H"), (3, "W"))} for level in (1, 2))
    free = {0: Dim("batch"), 1: Dim("queries")}
    args = draw("multi", SIZES[0], 2)
    maps = [{0: free[0], **sides} for sides in (first, second)]
    program = torch.export.export(module, args, dynamic_shapes=(free, free, maps), strict=strict)
    assert all(bounds.upper == int_oo for bounds in program.range_constraints.values())


def test_export_refuses_what_needs_the_numbers_of_a_tensor_of_shapes_with_the_advice_to_pass_ints():
    class Points(torch.nn.Module):
        def forward(self, shapes):
            return encoder_reference_points(shapes)

    args = (torch.tensor([[2, 3]]),)
    with pytest.raises(ValueError, match=r"^spatial_shapes: expected pairs of ints.*Pass a list of int pairs"):
        torch.export.export(Points(), args, strict=False)
    with pytest.raises(Exception, match=r"spatial_shapes: expected pairs of ints.*pass a list of int pairs"):
        torch.export.export(Points(), args, strict=True)


def test_constants_beside_the_arguments_of_an_exported_module_are_taken():
    module, references = MultiScaleDeformableAttention(6, num_heads=2, num_levels=2), torch.rand(2, 11, 2)

    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, query, first, second):
            return self.module(query, references, [first, second])

    query, _, maps = draw("multi", SIZES[0], 2)
    program = torch.export.export(Fixed(), (query, *maps), strict=False)
    torch.testing.assert_close(program.module()(query, *maps), module(query, references, maps))


def test_an_exported_program_can_be_trained():
    module, dynamic_shapes = build("multi")
    args = draw("multi", SIZES[0], 2)
    exported = torch.export.export(module, args, dynamic_shapes=dynamic_shapes).module()
    exported(*args).sin().sum().backward()
    module(*args).sin().sum().backward()
    for name, parameter in exported.named_parameters():
        torch.testing.assert_close(parameter.grad, module.get_parameter(name).grad)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script:DeprecationWarning", "ignore:`isinstance:FutureWarning"
)  # of torch
def test_a_package_of_aotinductor_runs_from_python(tmp_path):
    module, dynamic_shapes = build("multi")
    with torch.no_grad():
        program = torch.export.export(module, draw("multi", SIZES[0], 2), dynamic_shapes=dynamic_shapes)
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "attention.pt2"))
        compiled = torch._inductor.aoti_load_package(path)
        for i, shapes in enumerate(SIZES):
            args = draw("multi", shapes, 2 + i, 11 + 2 * i)
            torch.testing.assert_close(compiled(*args), module(*args))
