"""`to_onnx`: a model with deformable attention as a file of ONNX, checked before it is there."""

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deform_attn.evaluating import evaluating
from deform_attn.export import forms, free_axes, interface, symbols, verification
from deform_attn.export.extra import onnx_extra
from deform_attn.export.free_axes import Dynamic, Shape
from deform_attn.export.nested import named, tensors
from deform_attn.export.quiet import quiet
from deform_attn.messages import fail, shown

_OPSET = 18  # its GridSample is that of 16, the newest that the GPU kernels of ONNX Runtime have known for long


@dataclass(frozen=True)
class Exported:
    """What `to_onnx` wrote: the inputs and outputs of the file with their shapes. A free size is a name.

    `error` is the largest difference between the file's outputs in ONNX Runtime and the model's. It is a share of the
    output's largest number, or of 1 if that is larger. `tried` has the shapes of the inputs of that run. Both are None
    if the file was not run.
    """

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    tried: dict[str, Shape] | None
    error: float | None


def to_onnx(
    model: nn.Module,
    example: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    form: str = "gridsample",
    dynamic: Dynamic = True,
    verify: bool | tuple[Any, ...] = True,
    plugin_version: int = 1,
    half_node: bool = False,
    metadata: dict[str, str] | None = None,
    on_stage: Callable[[str], object] | None = None,
) -> Exported:
    """Write a model to a file of ONNX, with its deformable attention in the form that a runtime takes.

    docs/onnx.md says which runtime takes which form:

    - `"gridsample"`: the operator GridSample, opset 18.
    - `"gather"`: pixels by index, no axis beyond the fifth.
    - `"native"`: a node of our own, for ONNX Runtime with the operators of `deform_attn.export.onnxruntime`.
    - `"tensorrt"`: a node MultiscaleDeformableAttnPlugin_TRT.
    - `"mmdeploy"`: a node MMCVMultiScaleDeformableAttention.

    The file appears once it is complete and has passed all checks. Before that, and after an error, an older file at
    `path` is unchanged. During the export the model is in evaluation mode.

    Args:
        model: a module that calls the functions or modules of deform_attn, or one that `deform_attn.patch` has changed.
            It returns tensors, in tuples, lists or dicts.
        example: the arguments of its forward, by position. Tensors in lists become inputs in their order.
        path: the file to write.
        form: the form of the attention, see above.
        dynamic: True frees every size that the model leaves free: batch, queries, images, maps. A batch that the model
            fixes is then an error, and so is a fixed height or width of RGB images `[N, 3, H, W]`. With "batch" only
            the first axis of each tensor is free, for models that hold image sizes as numbers. A dict of axes by the
            input's name, as `{"images": (0, 2, 3)}`, demands that all of them are free. False frees none. An axis of
            size 1 in `example` stays 1, so its batch must be 2 or more.
        verify: whether to test the file. ONNX Runtime runs plain forms and `native` on another batch and other sizes,
            and the outputs are compared with the model's. Nodes of plugins are compared with the plugin's interface. A
            tuple is the example to run; by default `example` is stretched.
        plugin_version: for the form `tensorrt`: 1, which every TensorRT with the plugin supports, or 2, from 10.11 on.
        half_node: for the form `tensorrt`: whether the node computes in float16 where value is float16. The plugin's
            coordinates are then float16, too, which is coarse. By default the node is float32.
        metadata: texts to store in the file.
        on_stage: called with a line, such as "writing the graph", whenever another slow stage begins.

    Returns:
        An `Exported` with what the file takes and returns.

    Raises:
        ValueError, TypeError: an argument does not fit, the form cannot express a call of the model, or the file
            differs from the model.
        ModuleNotFoundError: a package of the extra `onnx` is not installed.
        OSError: the file cannot be written.

    Example:
        >>> import torch
        >>> from deform_attn import MultiScaleDeformableAttention
        >>> from deform_attn.export import to_onnx
        >>> attention = MultiScaleDeformableAttention(embed_dim=32, num_heads=4, num_levels=2)
        >>> maps = [torch.randn(2, 32, 12, 18), torch.randn(2, 32, 6, 9)]
        >>> example = torch.randn(2, 5, 32), torch.rand(2, 5, 2), maps
        >>> exported = to_onnx(attention, example, "attention.onnx")  # doctest: +SKIP
    """
    say = on_stage or (lambda line: None)
    _check(model, example, path, verify)
    forms.named(form)
    options = _check_options(form, plugin_version, half_node)
    given = dict(named("", inspect.signature(model.forward).bind(*example).arguments))
    free_axes.check(dynamic, given)
    with onnx_extra():
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter is made of it
    say("tracing the model with torch.export")
    with evaluating(model), quiet(), _whole(Path(path)) as file:
        with torch.no_grad():
            outputs = [name for name, _ in named("", model(*example))]
            free = free_axes.specification(model, example, dynamic)
            with symbols.kept(model), forms.Writing(form, **options) as writing:
                program = torch.export.export(model, example, dynamic_shapes=free, strict=False)
            writing.check()
            shapes = free_axes.of_program(program, dynamic, given)
            other = verification.other_example(example, shapes) if verify is True else verify or ()
            if other:
                verification.check_sizes(program, other)
        # An output may not have the name of an input.
        taken = {*program.graph_signature.user_inputs, ""}
        names = [f"{name}_output".lstrip("_") if name in taken else name for name in outputs]
        say("writing the graph")
        written: Any = torch.onnx.export(
            program, (), dynamo=True, opset_version=_OPSET, output_names=names, optimize=False, verbose=False
        )
        _fix_sizes(written.model)
        written.optimize()
        _strip(written.model)
        written.model.metadata_props.update(metadata or {})
        written.save(file)
        onnx.checker.check_model(file, full_check=True)
        graph = onnx.load(file, load_external_data=False).graph
        tried: dict[str, Shape] | None = None
        error = None
        if not forms.FORMS[form].runs_here:
            say("checking the graph and its nodes")
            interface.check(graph)
        elif other:
            say("checking against PyTorch: ONNX Runtime runs the file")
            error = verification.error_of(model, other, file)
            tried = {name: tuple(each.shape) for name, each in zip(given, tensors(other), strict=True)}
    return Exported(_shapes(graph.input), _shapes(graph.output), tried, error)


def _check(model: Any, example: Any, path: Any, verify: Any) -> None:
    """Judge the arguments that have nothing to do with the form."""
    if not isinstance(model, nn.Module):
        fix = "Call the function in the forward of a module."
        fail("model", "a torch.nn.Module", type(model).__name__, fix, TypeError)
    for name, arguments in (("example", example), ("verify", verify)):
        if not isinstance(arguments, tuple) and not (name == "verify" and isinstance(arguments, bool)):
            fix = "Pass the arguments of the model's forward, e.g. (images, mask)."
            fail(name, "a tuple", type(arguments).__name__, fix, TypeError)
    if not str(path).endswith(".onnx"):
        fail("path", "a name that ends in .onnx", repr(str(path)), "Runtimes go by the suffix.")


def _check_options(form: str, plugin_version: Any, half_node: Any) -> dict[str, Any]:
    """Judge the options of the form `tensorrt`; return those that the form takes."""
    if plugin_version not in (1, 2):
        fail("plugin_version", "1 or 2", shown(plugin_version), "2 needs TensorRT 10.11 or newer.")
    if not isinstance(half_node, bool):
        fail("half_node", "True or False", shown(half_node), "Pass a plain bool.", TypeError)
    if form == "tensorrt":
        return {"plugin_version": plugin_version, "half_node": half_node}
    if plugin_version != 1 or half_node:
        fail("form", "'tensorrt' with plugin_version or half_node", repr(form), "Leave them out.")
    return {}


def _fix_sizes(model: Any) -> None:
    """Write sizes that torch has fixed as numbers, not as names, before the optimizer looks for constants."""
    for each in _values(model):
        if each.shape is not None:
            each.shape = type(each.shape)(
                [dim if isinstance(of := free_axes.number_or_name(dim), str) else of for dim in each.shape]
            )


def _strip(model: Any) -> None:
    """Take out where in the sources each node comes from: paths of this machine, which make the file larger."""
    for each in (*_values(model), *(node for graph in model.graphs() for node in graph)):
        each.metadata_props.clear()


def _values(model: Any) -> list[Any]:
    graphs = [*model.graphs()]
    return [*(value for graph in graphs for node in graph for value in node.outputs), *model.graph.inputs]


def _shapes(values: Any) -> dict[str, Shape]:
    dims = {each.name: each.type.tensor_type.shape.dim for each in values}
    return {name: tuple(dim.dim_param or dim.dim_value for dim in of) for name, of in dims.items()}


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a temporary path, which becomes `path` when the block ends and vanishes when it raises."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        yield (temporary := Path(folder) / path.name)
        os.replace(temporary, path)
