"""What every change of an ONNX graph needs: who reads what, of which shape and dtype; nodes on other values; constants that are added.

Names of what is added end in "@" and what it is: the exporter gives names of Python, which have no such sign.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from coreflow.models.arrays import Array

Shapes = dict[str, tuple[int, ...]]


def shapes_of(graph: GraphProto) -> Shapes:
    """By name of a value, its shape, where it is declared; an open extent is 0."""
    declared = (*graph.input, *graph.value_info, *graph.output)
    return {each.name: tuple(axis.dim_value for axis in each.type.tensor_type.shape.dim) for each in declared}


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """The constants by name."""
    return {each.name: each for each in graph.initializer}


def count_readers(graph: GraphProto) -> Counter[str]:
    """By name of a value, how many read it; who calls the model is one, too."""
    return Counter([*(name for node in graph.node for name in node.input), *(output.name for output in graph.output)])


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, strings as text."""
    found = next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)
    return found.decode() if isinstance(found, bytes) else found


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
    if all(each.name != name for each in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def reshape(graph: GraphProto, source: str, target: str, shape: Sequence[int]) -> NodeProto:
    """A node that gives ``source`` another shape; onnxruntime moves nothing for it."""
    return helper.make_node("Reshape", [source, add_constant(graph, f"{target}@shape", np.array(shape, np.int64))], [target], name=target)


def replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Makes ``nodes`` the graph's, in that order."""
    kept = [rewired(node, *node.input, *node.output) for node in nodes]  # what is in the graph goes with the graph's list
    del graph.node[:]
    graph.node.extend(kept)
