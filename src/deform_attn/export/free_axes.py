"""Free axes: which axes of a model's inputs any size may have, and whether its program leaves them so."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deform_attn.export.nested import mapped, named
from deform_attn.messages import fail, shown

Shape = tuple[int | str, ...]  # of an input or output: a name or a formula where the size is free
Dynamic = bool | str | Mapping[str, Collection[int]]


def check(dynamic: Any, inputs: Mapping[str, Tensor]) -> None:
    """Judge the argument `dynamic` for these inputs."""
    if isinstance(dynamic, Mapping):
        for name, axes in dynamic.items():
            if name not in inputs:
                fail(
                    "dynamic", f"names among {[*inputs]}", shown(name), "Inputs have the names of forward's arguments."
                )
            if not set(axes) <= {*range(inputs[name].ndim)}:
                got = f"{shown([*axes])}, but it has {inputs[name].ndim}"
                fail("dynamic", f"axes of {name}, counted from 0", got, "Write e.g. {'images': (0, 2, 3)}.")
    elif not isinstance(dynamic, bool) and dynamic != "batch":
        fix = "Leave it out for True."
        fail("dynamic", 'True, False, "batch", or the axes of each input', shown(dynamic), fix, TypeError)
    for name, axis in _demanded(dynamic, inputs):
        if (size := inputs[name].shape[axis]) < 2:
            what = f"a size of 2 or more in axis {axis} of {name}, as torch takes 1 for a constant"
            fail("example", what, str(size), "Or pass dynamic=False.")


def specification(model: nn.Module, example: tuple[Any, ...], dynamic: Dynamic) -> Any:
    """Return what torch.export calls `dynamic_shapes`: each axis free that may be."""
    arguments = inspect.signature(model.forward).bind(*example).arguments
    names = iter([name for name, _ in named("", arguments)])

    def axes_of(tensor: Tensor) -> dict[int, Any]:
        name = next(names)
        if isinstance(dynamic, Mapping):
            return dict.fromkeys(dynamic.get(name, ()), torch.export.Dim.AUTO)
        most = 1 if dynamic == "batch" else tensor.ndim if dynamic else 0
        return dict.fromkeys(range(tensor.ndim)[:most], torch.export.Dim.AUTO)

    return mapped(arguments, axes_of, lambda _: None)


def of_program(program: torch.export.ExportedProgram, dynamic: Dynamic, inputs: Mapping[str, Tensor]) -> list[Shape]:
    """Return the shapes of a program's inputs, in which all axes are free that `dynamic` demands."""
    given = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    tensors = [given[name] for name in program.graph_signature.user_inputs if isinstance(given.get(name), Tensor)]
    shapes = [tuple(map(number_or_name, tensor.shape)) for tensor in tensors]
    of = dict(zip(inputs, shapes, strict=True))
    for name, axis in _demanded(dynamic, inputs):
        if isinstance(size := of[name][axis], int):
            fix = 'Pass dynamic=False, or dynamic="batch" where only the sizes of images are fixed.'
            fail("dynamic", f"a model that leaves axis {axis} of {name} free", f"one that fixes it to {size}", fix)
    return shapes


def number_or_name(size: Any) -> int | str:
    """Return a size as a number where it is one, also where torch calls it a symbol that it has fixed."""
    return int(text) if (text := str(size)).isdigit() else text


def is_image(tensor: Tensor) -> bool:
    """Return whether a tensor is one of RGB images, `[N, 3, H, W]`."""
    return tensor.is_floating_point() and tensor.ndim == 4 and tensor.shape[1] == 3


def _demanded(dynamic: Dynamic, inputs: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Return the input and the axis of what must be free: of True the batch, and the height and width of RGB images."""
    if isinstance(dynamic, Mapping):
        return [(name, axis) for name, axes in dynamic.items() for axis in axes]
    floats = {name: each for name, each in inputs.items() if each.is_floating_point() and each.ndim > 1}
    batch = [(name, 0) for name in list(floats)[:1] if dynamic]
    images = [name for name, each in floats.items() if is_image(each) and dynamic is True]
    return batch + [(name, axis) for name in images for axis in (2, 3)]
