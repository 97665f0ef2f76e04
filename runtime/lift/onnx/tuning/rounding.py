"""Changes before onnxruntime optimises: where a rounding to fp16 stands, and how fp16 inputs are taken."""

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import NamedTuple

from onnx import GraphProto, NodeProto, TensorProto, helper

from coreflow.runtime.lift.onnx.tuning.graph import casts_to, count_readers, replace_nodes, rewired

_MONOTONE = frozenset({"Relu", "MaxPool"})


def take_fp16_inputs(graph: GraphProto, names: Collection[str]) -> None:
    """Takes the inputs ``names`` as fp16: onnxruntime has threads for the conversion, and its caller would have one.

    Given: an input x in fp32.
    Result: an input x in fp16, and Cast(x) to fp32 wherever x was read.
    """
    inputs = [value for value in graph.input if value.name in names and value.type.tensor_type.elem_type != TensorProto.FLOAT16]
    for value in inputs:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    in_fp32 = {value.name: f"{value.name}@wide" for value in inputs}
    casts = [helper.make_node("Cast", [name], [cast], name=cast, to=TensorProto.FLOAT) for name, cast in in_fp32.items()]
    readers = [rewired(node, *(in_fp32.get(name, name) for name in node.input), *node.output) for node in graph.node]
    replace_nodes(graph, [*casts, *readers])


def round_later(graph: GraphProto) -> None:
    """Moves roundings to fp16 behind relu and behind a maximum over a window.

    Given: x -> Cast to fp16 -> Cast to fp32 -> Relu or MaxPool -> y, where nothing else reads what is between.
    Result: x -> Relu or MaxPool -> Cast to fp16 -> Cast to fp32 -> y.

    A number and what it is rounded to have the same sign, and of two numbers the larger is rounded to the larger. onnxruntime makes one
    kernel of a convolution and relu; behind a maximum there are fewer numbers to round.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers = count_readers(graph)
    declared = {value.name: value.type for value in (*graph.value_info, *graph.output)}
    for node in graph.node:
        chain = _rounded_before(node, makers, readers)
        if chain is None or chain.monotone.output[0] not in declared:
            continue
        names = chain.move_rounding_back()
        makers.update((moved.output[0], moved) for moved in chain)
        for name, dtype in ((names[1], TensorProto.FLOAT), (names[2], TensorProto.FLOAT16)):
            if name in declared:
                declared[name].CopyFrom(declared[names[3]])
                declared[name].tensor_type.elem_type = dtype


class _Chain(NamedTuple):
    """A rounding and the op behind it, in the order in which they are computed."""

    to_fp16: NodeProto
    to_fp32: NodeProto
    monotone: NodeProto

    def move_rounding_back(self) -> tuple[str, str, str, str]:
        """Computes the monotone op first, under the same four names, which it returns: of the first input and of every result."""
        names = self.to_fp16.input[0], *(node.output[0] for node in self)
        order = self.monotone, self.to_fp16, self.to_fp32
        moved = [rewired(node, *pair) for node, pair in zip(order, pairwise(names), strict=True)]
        for place, node in zip(self, moved, strict=True):
            place.CopyFrom(node)
        return names[0], names[1], names[2], names[3]


def _rounded_before(node: NodeProto, makers: Mapping[str, NodeProto], readers: Mapping[str, int]) -> _Chain | None:
    """The chain that ``node`` ends, if it is a monotone op on a rounded value, and alone reads that and what it was rounded from."""
    if node.op_type not in _MONOTONE or len(node.output) > 1:
        return None
    to_fp32 = makers.get(node.input[0])
    to_fp16 = makers.get(to_fp32.input[0]) if to_fp32 is not None and casts_to(to_fp32, TensorProto.FLOAT) else None
    if to_fp32 is None or to_fp16 is None or not casts_to(to_fp16, TensorProto.FLOAT16):
        return None
    between = to_fp16.input[0], to_fp16.output[0], to_fp32.output[0]
    return _Chain(to_fp16, to_fp32, node) if all(readers[name] == 1 for name in between) else None
