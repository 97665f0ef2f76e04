"""Shapes, constants and readers of an ONNX graph, and edits of its nodes; shared by all rewrites.

Names of added nodes and values contain "@", which no name of the exporter does: those are Python identifiers.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from coreflow.models.arrays import Array

Shapes = dict[str, tuple[int, ...]]


def shapes_of(graph: GraphProto) -> Shapes:
    """Shape per value name, where one is declared; an open extent is 0."""
    declared = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim) for value in declared}


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """The constants by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def count_readers(graph: GraphProto) -> Counter[str]:
    """Reader count per value name; each graph output counts as one reader."""
    return Counter([*(name for node in graph.node for name in node.input), *(output.name for output in graph.output)])


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, strings as text."""
    value = next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)
    return value.decode() if isinstance(value, bytes) else value


def casts_to(node: NodeProto, dtype: int) -> bool:
    """Whether the node converts to ``dtype``, one of ``TensorProto``'s."""
    return node.op_type == "Cast" and attribute(node, "to") == dtype


def rewired(node: NodeProto, *names: str) -> NodeProto:
    """The node on other inputs and outputs, as many as it has."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:], copy.output[:] = names[: len(node.input)], names[len(node.input) :]
    return copy


def add_constant(graph: GraphProto, name: str, array: Array) -> str:
    """Adds a constant and returns its name; one of that name is there only once."""
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def reshape(graph: GraphProto, source: str, target: str, shape: Sequence[int]) -> NodeProto:
    """A node that gives ``source`` another shape; onnxruntime moves nothing for it."""
    return helper.make_node("Reshape", [source, add_constant(graph, f"{target}@shape", np.array(shape, np.int64))], [target], name=target)


def replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Makes ``nodes`` the graph's, in that order."""
    copies = [rewired(node, *node.input, *node.output) for node in nodes]  # a node of the graph goes with the graph's list
    del graph.node[:]
    graph.node.extend(copies)
