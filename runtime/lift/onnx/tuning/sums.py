"""Sums in blocks as convolutions: onnxruntime's convolution adds to what is there, in place, and relu costs it nothing.

x + y is the depthwise convolution of x by ones, added to y: the same bits, but that -0 and -0 give 0. Add itself writes a third buffer,
which has to come into the cache first.
"""

from collections.abc import Collection, Mapping

import numpy as np
from onnx import GraphProto, NodeProto, helper

from coreflow.runtime.lift.onnx.tuning.blocks import NCHWC
from coreflow.runtime.lift.onnx.tuning.graph import Shapes, add_constant, count_readers, replace_nodes


def sums_as_convolutions(graph: GraphProto, shapes: Shapes, in_blocks: Collection[str]) -> None:
    """Makes convolutions of sums in blocks, with the relu behind them.

    Given: Add(x, y), in blocks, where nothing else reads y; or Relu(Add(x, y)), where nothing else reads the sum.
    Result: Conv(x, ones, sum=y), or the same with relu as its activation.
    """
    readers = count_readers(graph)
    relus = {node.input[0]: node for node in graph.node if node.op_type == "Relu" and readers[node.input[0]] == 1}
    fused: set[str] = set()  # results of relus that are part of a sum
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] in fused:
            continue
        operands = _operands(node, readers) if node.output[0] in in_blocks else None
        if operands is None:
            nodes.append(node)
            continue
        relu = relus.get(node.output[0])
        nodes.append(_convolution(graph, operands, node.output[0], relu, shapes[node.output[0]][1]))
        fused.update(() if relu is None else relu.output)
    replace_nodes(graph, nodes)


def _operands(node: NodeProto, readers: Mapping[str, int]) -> tuple[str, str] | None:
    """The operands of a sum, the second read by nothing else, so that it may be written over; None for a node that is no such sum."""
    shared = [name for name in node.input if readers[name] > 1]
    if node.op_type != "Add" or len(shared) > 1:
        return None
    first, second = node.input
    return (first, second) if first in shared else (second, first)


def _convolution(graph: GraphProto, operands: tuple[str, str], target: str, relu: NodeProto | None, channels: int) -> NodeProto:
    """A convolution that gives the sum, or its relu under the name of that."""
    source, addend = operands
    ones = add_constant(graph, f"ones@{channels}", np.ones((channels, 1, 1, 1), np.float32))
    window = {"kernel_shape": [1, 1], "strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "group": channels}
    if relu is not None:
        target = relu.output[0]
        window["activation"] = "Relu"
    return helper.make_node("Conv", [source, ones, "", addend], [target], name=target, domain=NCHWC, **window)
