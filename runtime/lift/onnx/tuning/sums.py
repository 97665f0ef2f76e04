"""Sums in blocks as convolutions: onnxruntime's convolution adds to what is there, in place, and relu costs it nothing.

x + y is the depthwise convolution of x by ones, added to y: the same bits, but that -0 and -0 give 0. Add itself writes a third buffer,
which has to come into the cache first.
"""

from collections.abc import Collection

import numpy as np
from onnx import GraphProto, NodeProto, helper

from coreflow.runtime.lift.onnx.tuning.blocks import NCHWC
from coreflow.runtime.lift.onnx.tuning.graph import Shapes, add_constant, count_readers, replace_nodes


def sums_as_convolutions(graph: GraphProto, shapes: Shapes, in_blocks: Collection[str]) -> None:
    """Replaces every Add of two values in blocks, one of which nothing else reads; and the relu behind it, if that alone reads the sum."""
    readers = count_readers(graph)
    relus = {node.input[0]: node for node in graph.node if node.op_type == "Relu" and readers[node.input[0]] == 1}
    fused: set[str] = set()  # relus that are part of a sum
    nodes: list[NodeProto] = []
    for node in graph.node:
        target = node.output[0]
        kept = [name for name in node.input if readers[name] > 1]
        if target in fused:
            continue
        if node.op_type != "Add" or target not in in_blocks or len(kept) > 1:
            nodes.append(node)
            continue
        source, addend = node.input if node.input[0] in kept else reversed(node.input)
        channels = shapes[target][1]
        ones = add_constant(graph, f"ones@{channels}", np.ones((channels, 1, 1, 1), np.float32))
        window = {"kernel_shape": [1, 1], "strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "group": channels}
        relu = relus.get(target)
        if relu is not None:
            fused.add(target := relu.output[0])
            window["activation"] = "Relu"
        nodes.append(helper.make_node("Conv", [source, ones, "", addend], [target], name=target, domain=NCHWC, **window))
    replace_nodes(graph, nodes)
