"""Means as products: onnxruntime's mean over an axis that is not the last takes two to ten times as long."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from coreflow.runtime.lift.onnx.tuning.graph import Shapes, add_constant, constants_of, replace_nodes, reshape


def means_as_products(graph: GraphProto, shapes: Shapes) -> None:
    """Makes products of means over one axis that is not the last.

    Given: ReduceMean of (..., N, S) over N.
    Result: (1, N), all 1 / N, times (..., N, S), between two reshapes where axes are folded or dropped.
    """
    constants = constants_of(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        axis = _averaged_axis(node, shapes, constants)
        nodes.extend([node] if axis is None else _product(graph, node, axis, shapes))
    replace_nodes(graph, nodes)


def _averaged_axis(node: NodeProto, shapes: Shapes, constants: Mapping[str, TensorProto]) -> int | None:
    """The one axis, not the last, that the node averages over; None for every other node."""
    if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
        return None
    shape, axes = shapes.get(node.input[0], ()), numpy_helper.to_array(constants[node.input[1]]).tolist()
    if len(axes) != 1 or not shape or not all(shape) or node.output[0] not in shapes:
        return None
    axis = int(axes[0]) % len(shape)
    return axis if axis < len(shape) - 1 else None


def _product(graph: GraphProto, node: NodeProto, axis: int, shapes: Shapes) -> Iterator[NodeProto]:
    """The nodes that give the mean over ``axis``."""
    source, target = node.input[0], node.output[0]
    shape, result = shapes[source], shapes[target]
    extent, after = shape[axis], shape[axis + 1 :]
    row = add_constant(graph, f"{target}@row", np.full((1, extent), 1 / extent, np.float32))
    folded = (*shape[:axis], *(1 for _ in after[1:]), extent, math.prod(after))  # as many axes as the result has, if it keeps them
    product = (*folded[:-2], 1, folded[-1])
    if shape != folded:
        yield reshape(graph, source, source := f"{target}@folded", folded)
    flat = target if result == product else f"{target}@flat"
    yield helper.make_node("MatMul", [row, source], [flat], name=node.name)
    if flat != target:
        yield reshape(graph, flat, target, result)
