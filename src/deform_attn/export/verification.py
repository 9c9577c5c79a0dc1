"""Verification: a file, before it is kept, run by ONNX Runtime on other sizes and compared with its model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deform_attn.export.extra import onnx_extra
from deform_attn.export.free_axes import Shape
from deform_attn.export.nested import mapped, tensors
from deform_attn.export.onnxruntime import session_options
from deform_attn.messages import fail

# Of an output's difference, as a share of its largest number or of 1. The two add the same numbers in another order,
# and a deep model carries that on.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}


def other_example(example: tuple[Any, ...], shapes: Sequence[Shape]) -> tuple[Any, ...]:
    """Return an example stretched to other sizes wherever `shapes`, those of its tensors, leave them free.

    Each tensor keeps its content, as the nearest entry, floats a tenth smaller. Where an integer tensor `[L, 2]` holds
    the sizes of maps, these grow by 1, and with them the axis that has all their pixels.
    """
    given = tensors(example)
    numbers: dict[str, int] = {}
    for tensor, shape in zip(given, shapes, strict=True):
        for size, name in zip(tensor.shape, shape, strict=True):
            if isinstance(name, str) and name.isidentifier():
                numbers[name] = size + (32 if size >= 64 else 1)
    sizes = [tensor for tensor in given if _are_sizes(tensor)]
    pixels = {int(each.prod(1).sum()): int((each + 1).prod(1).sum()) for each in sizes}
    for tensor, shape in zip(given, shapes, strict=True):
        for size, name in zip(tensor.shape, shape, strict=True):
            if isinstance(name, str) and name.isidentifier() and size in pixels and tensor.ndim > 1:
                numbers[name] = pixels[size]
    rest = iter(shapes)
    return mapped(example, lambda tensor: _stretched(tensor, _evaluated(next(rest), numbers)))


def check_sizes(program: torch.export.ExportedProgram, example: tuple[Any, ...]) -> None:
    """Judge that a program takes an example, which its own conditions on sizes may not allow.

    Raises:
        ValueError: it has fixed a size inside, such as that of a map.
    """
    try:
        program.module()(*example)
    except AssertionError as failure:
        if "!=" in str(failure):
            return  # a size that torch has told from another by chance, which the file does not know
        sizes = [tuple(tensor.shape) for tensor in tensors(example)]
        fix = 'Pass dynamic="batch", or, in verify, an example of sizes that the model takes.'
        fail("dynamic", f"a model that takes inputs of {sizes}", f"one that does not: {failure}", fix)


def error_of(model: nn.Module, example: tuple[Any, ...], file: Path) -> float:
    """Return how far the outputs of a file are from its model's, as a share of the largest number or of 1.

    Raises:
        ValueError: it is further than rounding explains, or ONNX Runtime cannot run the file.
    """
    with onnx_extra():
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

    with torch.no_grad():
        expected = tensors(model(*example))
    try:
        session = onnxruntime.InferenceSession(file, session_options(), providers=["CPUExecutionProvider"])
    except state.NotImplemented as failure:  # such as GridSample in float64
        fix = "No file is written. Export another form, or a float32 model, or pass verify=False to have the file."
        fail("verify", "a file that ONNX Runtime can run", f"from ONNX Runtime: {_line(failure)}", fix)
    names = [each.name for each in session.get_inputs()]
    given = [tensor.detach().cpu().numpy() for tensor in tensors(example)]
    tried = f"inputs of {[tuple(each.shape) for each in given]}"
    try:
        results = session.run(None, dict(zip(names, given, strict=True)))
    except (state.Fail, state.InvalidArgument, state.RuntimeException) as failure:
        # The graph has a size of the example as a number, somewhere inside.
        fix = 'No file is written. Pass dynamic="batch", which fixes the sizes of images to those of example.'
        fail("verify", f"a file that runs for {tried}", f"from ONNX Runtime: {_line(failure)}", fix)
    error = 0.0
    for output, result, tensor in zip(session.get_outputs(), results, expected, strict=True):
        distance, tolerance = difference(torch.from_numpy(result), tensor), TOLERANCES.get(tensor.dtype, 0.0)
        if not distance <= tolerance:
            fix = "No file is written. Pass verify=False to have the file, and report it."
            got = f"{distance:.1e} for {tried}"
            fail("verify", f"{output.name} within {tolerance:.0e} of the model's, relative to its largest", got, fix)
        error = max(error, distance)
    return error


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return how far a tensor is from another, as a share of the largest number in it or of 1; NaN is near NaN."""
    if actual.shape != expected.shape:
        return torch.inf
    expected = expected.cpu()
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else torch.inf
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    distances = torch.where(same, 0, (actual.double() - expected.double()).abs())
    finite = expected[expected.isfinite()].double().abs()
    largest = max(1.0, finite.amax().item()) if finite.numel() else 1.0
    return distances.amax().item() / largest if distances.numel() else 0.0


def _line(failure: Exception) -> str:
    return " ".join(str(failure).split())[-300:]


def _are_sizes(tensor: Tensor) -> bool:
    is_int = not tensor.is_floating_point() and tensor.dtype != torch.bool
    return is_int and tensor.ndim == 2 and tensor.shape[1] == 2


def _stretched(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    if _are_sizes(tensor):
        return tensor + 1
    for axis, size in enumerate(shape):
        places = torch.arange(size, device=tensor.device) * tensor.shape[axis] // size
        tensor = tensor.index_select(axis, places)
    return tensor * 0.9 if tensor.is_floating_point() else tensor


def _evaluated(shape: Shape, numbers: Mapping[str, int]) -> list[int]:
    import sympy  # torch needs it, and writes the formulas with it

    sizes = [sympy.sympify(size, locals=dict(numbers)) for size in shape]
    if not all(isinstance(size, (int, sympy.Integer)) for size in sizes):
        fix = "Pass verify=(...), another example of other sizes."
        fail("verify", "an example whose sizes follow from one another", f"inputs of sizes {list(shape)}", fix)
    return [int(size) for size in sizes]
