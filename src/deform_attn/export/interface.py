"""The interface of the plugins' nodes, as they document it, and whether those of a file keep to it."""

from typing import Any, NamedTuple

from deform_attn.export.nodes import MMDEPLOY, TENSORRT
from deform_attn.messages import fail


class Interface(NamedTuple):
    """What a node takes and returns: ranks of its inputs and its output, and its attributes."""

    ranks: tuple[int, ...]
    output_rank: int
    attributes: frozenset[str]
    has_half: bool


_RANKS = 4, 2, 1, 6, 5  # value, sizes, starts, locations, weights
_INT32, _FLOAT, _HALF = 6, 1, 10  # as ONNX numbers the types
INTERFACES = {
    TENSORRT: Interface(_RANKS, 4, frozenset({"plugin_version", "plugin_namespace"}), has_half=True),
    MMDEPLOY: Interface(_RANKS, 3, frozenset({"im2col_step"}), has_half=False),
}


def check(graph: Any) -> None:
    """Judge that the nodes of a graph of ONNX are those that their plugins document."""
    if found := faults(graph):
        fix = "No file is written. Report it, with the versions of torch and onnxscript."
        fail("model", "one whose nodes keep to the interface of their plugin", "; ".join(found), fix)


def faults(graph: Any) -> list[str]:
    """Return what is wrong with the plugins' nodes of a graph of ONNX; that it has none is a fault, too."""
    tensors = {each.name: (each.data_type, len(each.dims)) for each in graph.initializer}
    for each in (*graph.input, *graph.value_info, *graph.output):
        tensors[each.name] = each.type.tensor_type.elem_type, len(each.type.tensor_type.shape.dim)
    nodes = [(node, INTERFACES.get(f"{node.domain}::{node.op_type}")) for node in graph.node]
    found = [fault for node, interface in nodes if interface for fault in _faults_of(node, interface, tensors)]
    return found if any(interface for _, interface in nodes) else ["no node of a plugin"]


def _faults_of(node: Any, interface: Interface, tensors: dict[str, tuple[int, int]]) -> list[str]:
    given = [tensors.get(name, (0, -1)) for name in node.input]
    floats = _HALF if interface.has_half and given[0][0] == _HALF else _FLOAT
    wanted = [*zip((floats, _INT32, _INT32, floats, floats), interface.ranks, strict=True)]
    found = []
    if given != wanted:
        found.append(f"{node.op_type} takes types and ranks {given}, not {wanted}")
    if (output := tensors.get(node.output[0])) != (floats, interface.output_rank):
        found.append(f"{node.op_type} returns {output}, not {(floats, interface.output_rank)}")
    if (names := {attribute.name for attribute in node.attribute}) != interface.attributes:
        found.append(f"{node.op_type} has attributes {sorted(names)}, not {sorted(interface.attributes)}")
    return found
