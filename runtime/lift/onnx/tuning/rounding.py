"""Changes before onnxruntime optimises: where a rounding to fp16 stands, and how fp16 inputs are taken."""

from collections.abc import Collection

from onnx import GraphProto, NodeProto, TensorProto, helper

from coreflow.runtime.lift.onnx.tuning.graph import casts_to, count_readers, replace_nodes, rewired

_MONOTONE = frozenset({"Relu", "MaxPool"})


def take_halves(graph: GraphProto, names: Collection[str]) -> None:
    """Inputs in fp16, widened inside: onnxruntime has threads for that, and its caller would have one."""
    taken = [value for value in graph.input if value.name in names]
    for value in taken:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    wide = {value.name: f"{value.name}@wide" for value in taken}
    widening = [helper.make_node("Cast", [name], [other], name=other, to=TensorProto.FLOAT) for name, other in wide.items()]
    reading = [rewired(node, *(wide.get(name, name) for name in node.input), *node.output) for node in graph.node]
    replace_nodes(graph, [*widening, *reading])


def round_later(graph: GraphProto) -> None:
    """fp16, fp32, relu becomes relu, fp16, fp32; and so does a maximum over a window.

    A number and what it is rounded to have the same sign, and of two numbers the larger is rounded to the larger. onnxruntime makes one
    kernel of a convolution and relu; behind a maximum there are fewer numbers to round.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers = count_readers(graph)
    declared = {value.name: value.type for value in (*graph.value_info, *graph.output)}
    for last in graph.node:
        if last.op_type not in _MONOTONE or len(last.output) > 1 or not _rounds(makers, last.input[0]):
            continue
        wide = makers[last.input[0]]
        narrow = makers[wide.input[0]]
        names = narrow.input[0], narrow.output[0], wide.output[0], last.output[0]
        if any(readers[name] != 1 for name in names[:3]) or names[3] not in declared:
            continue
        moved = [rewired(node, names[i], names[i + 1]) for i, node in enumerate((last, narrow, wide))]
        for place, node in zip((narrow, wide, last), moved, strict=True):  # in the order in which they are computed
            place.CopyFrom(node)
        makers.update((node.output[0], node) for node in (narrow, wide, last))
        for name, dtype in ((names[1], TensorProto.FLOAT), (names[2], TensorProto.FLOAT16)):
            if name in declared:
                declared[name].CopyFrom(declared[names[3]])
                declared[name].tensor_type.elem_type = dtype


def _rounds(makers: dict[str, NodeProto], name: str) -> bool:
    """Whether the value was made fp32 of fp16 of fp32."""
    wide = makers.get(name)
    narrow = makers.get(wide.input[0]) if wide is not None and casts_to(wide, TensorProto.FLOAT) else None
    return narrow is not None and casts_to(narrow, TensorProto.FLOAT16)
