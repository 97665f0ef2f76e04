"""A program's ONNX model made ready for onnxruntime on this processor.

onnxruntime optimises a model whenever it loads one, on copies of its weights. Here that is done once; what comes of it loads in a fraction
of the time and of the memory. With it go three changes that onnxruntime does not make by itself. None changes what is computed, except
that the sum of a mean is taken in another order:

- relu comes before the rounding of a convolution's result instead of behind it, where onnxruntime makes one kernel of the two;
- a mean over an axis that is not the last is a product with a row of 1 / n, mostly two to ten times as fast;
- what a convolution leaves in blocks of channels (NCHWc) stays so through ops that take every element by itself, above all through
  roundings, instead of being put in order for each of them and in blocks again behind it.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, load, numpy_helper, save
from onnx.external_data_helper import set_external_data

# Of every element by itself, and finite at the zeros with which a block may be filled up.
_ELEMENTWISE = frozenset({"Add", "Cast", "Gelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"})
_NCHWC = "com.microsoft.nchwc"  # the domain of onnxruntime's ops on blocks
_WIDEST_BLOCK = 16  # channels, with AVX-512; onnxruntime takes 8 or 4 elsewhere

_WORTH_MAPPING = 4096  # bytes; a page

# Names of what is added end in "@" and what it is: the exporter gives names of Python, which have no such sign.
Shapes = dict[str, tuple[int, ...]]


def tune(path: Path, optimise: Callable[[Path, Path], object], halves: Collection[str] = ()) -> None:
    """Tunes the model at ``path``; its weights go into a file beside it (``.weights``).

    ``optimise(source, target)`` is onnxruntime's part: what it makes of a model for this processor. The inputs ``halves`` may be taken as
    fp16 from then on; the session says so.
    """
    with TemporaryDirectory(dir=path.parent) as folder:
        prepared, optimised = Path(folder) / "prepared.onnx", Path(folder) / "optimised.onnx"
        nested = _prepare(path, prepared, halves)  # a function of its own: the weights are let go before onnxruntime takes its copies
        optimise(prepared, optimised)
        model = load(optimised)
    if not nested:
        shapes = _shapes(model.graph)
        _means_as_products(model.graph, shapes)
        _stay_in_blocks(model.graph, shapes)
    _put_weights_beside(model.graph, path.with_suffix(".weights"))
    save(model, path)


def _prepare(source: Path, target: Path, halves: Collection[str]) -> bool:
    """Writes the model as onnxruntime is to see it; whether it has nested graphs.

    What a nested graph reads is not among the inputs of its node, so a model with one is left as it is.
    """
    model = load(source)
    nested = any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute)
    if not nested:
        _take_halves(model.graph, halves)
        _relu_before_rounding(model.graph)
    save(model, target)
    return nested


def _put_weights_beside(graph: GraphProto, path: Path) -> None:
    """Moves the weights into a file of their own, which onnxruntime maps into memory instead of copying it there."""
    with path.open("wb") as file:
        for tensor in graph.initializer:
            if not tensor.HasField("raw_data") or len(tensor.raw_data) < _WORTH_MAPPING:
                continue
            file.write(bytes(-file.tell() % _WORTH_MAPPING))
            set_external_data(tensor, path.name, offset=file.tell(), length=len(tensor.raw_data))
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")


def _take_halves(graph: GraphProto, names: Collection[str]) -> None:
    """Inputs in fp16, widened inside: onnxruntime has threads for that, and its caller would have one."""
    taken = [value for value in graph.input if value.name in names]
    for value in taken:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    wide = {value.name: f"{value.name}@wide" for value in taken}
    widening = [helper.make_node("Cast", [name], [other], name=other, to=TensorProto.FLOAT) for name, other in wide.items()]
    reading = [_rewired(node, *(wide.get(name, name) for name in node.input), *node.output) for node in graph.node]
    _replace_nodes(graph, [*widening, *reading])


def _relu_before_rounding(graph: GraphProto) -> None:
    """fp16, fp32, relu becomes relu, fp16, fp32: a number and what it is rounded to have the same sign."""
    makers = {name: node for node in graph.node for name in node.output}
    readers = _readers(graph)
    declared = {value.name: value.type.tensor_type for value in graph.value_info}
    for relu in graph.node:
        if relu.op_type != "Relu" or not _rounds(makers, relu.input[0]):
            continue
        wide = makers[relu.input[0]]
        narrow = makers[wide.input[0]]
        names = narrow.input[0], narrow.output[0], wide.output[0], relu.output[0]
        if any(readers[name] != 1 for name in names[:3]):
            continue
        moved = [_rewired(node, names[i], names[i + 1]) for i, node in enumerate((relu, narrow, wide))]
        for place, node in zip((narrow, wide, relu), moved, strict=True):  # in the order in which they are computed
            place.CopyFrom(node)
        makers.update((node.output[0], node) for node in (narrow, wide, relu))
        for name, dtype in ((names[1], TensorProto.FLOAT), (names[2], TensorProto.FLOAT16)):
            if name in declared:
                declared[name].elem_type = dtype


def _means_as_products(graph: GraphProto, shapes: Shapes) -> None:
    """(..., N, S) averaged over N is (1, N), all 1 / N, times (..., N, S)."""
    constants = {each.name: each for each in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        axis = _averaged_axis(node, shapes, constants)
        if axis is None:
            nodes.append(node)
            continue
        source, target = node.input[0], node.output[0]
        shape, result = shapes[source], shapes[target]
        extent, after = shape[axis], shape[axis + 1 :]
        row = numpy_helper.from_array(np.full((1, extent), 1 / extent, np.float32), f"{target}@row")
        graph.initializer.append(row)
        folded = (*shape[:axis], *(1 for _ in after[1:]), extent, math.prod(after))  # as many axes as the result has, if it keeps them
        given = (*folded[:-2], 1, folded[-1])
        if shape != folded:
            nodes.append(_reshape(graph, source, source := f"{target}@folded", folded))
        flat = target if result == given else f"{target}@flat"
        nodes.append(helper.make_node("MatMul", [row.name, source], [flat], name=node.name))
        if flat != target:
            nodes.append(_reshape(graph, flat, target, result))
    _replace_nodes(graph, nodes)


def _averaged_axis(node: NodeProto, shapes: Shapes, constants: dict[str, TensorProto]) -> int | None:
    """The one axis, not the last, that the node averages over; None for every other node."""
    if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
        return None
    shape, axes = shapes.get(node.input[0], ()), numpy_helper.to_array(constants[node.input[1]]).tolist()
    if len(axes) != 1 or not shape or not all(shape) or node.output[0] not in shapes:
        return None
    axis = int(axes[0]) % len(shape)
    return axis if axis < len(shape) - 1 else None


def _stay_in_blocks(graph: GraphProto, shapes: Shapes) -> None:
    """Computes elementwise ops on blocks where all that they read is there in blocks; puts in order only what something else reads."""
    nodes: list[NodeProto] = []
    blocks: dict[str, str] = {}  # by name of a value, the name of the same value in blocks
    ordering: dict[str, NodeProto] = {}  # what would put a value in order, as long as nothing reads it so
    same: dict[str, str] = {}  # by name of blocks that are no longer made, those that are the same

    def put_in_order(name: str) -> None:
        if name in ordering:
            nodes.append(ordering.pop(name))

    for node in graph.node:
        reads = [same.get(name, name) for name in node.input]
        target = node.output[0]
        if node.op_type == "ReorderOutput" and _fills_blocks(node, shapes.get(target, ())):
            blocks[target], ordering[target] = reads[0], _rewired(node, reads[0], target)
        elif node.op_type == "ReorderInput" and reads[0] in blocks and not _in_last_axis(node):
            same[target] = blocks[reads[0]]
        elif node.op_type in _ELEMENTWISE and all(name in blocks for name in reads) and len({shapes[name] for name in reads}) == 1:
            shapes[target] = shapes[reads[0]]
            blocks[target] = f"{target}@in_blocks"
            moved = _rewired(node, *(blocks[name] for name in reads), blocks[target])
            nodes.append(moved)
            ordering[target] = _from_blocks(blocks[target], target, channels=shapes[target][1])
        else:
            for name in reads:
                put_in_order(name)
            nodes.append(_rewired(node, *reads, *node.output))
    for output in graph.output:
        put_in_order(output.name)
    _replace_nodes(graph, nodes)


def _fills_blocks(node: NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether blocks of a value of that shape hold nothing else, and go into (B, C, H, W)."""
    return len(shape) == 4 and all(shape) and shape[1] % _WIDEST_BLOCK == 0 and not _in_last_axis(node)


def _in_last_axis(node: NodeProto) -> bool:
    """Whether what is in order has its channels behind the places, (B, H, W, C)."""
    return any(each.name == "channels_last" and each.i for each in node.attribute)


def _from_blocks(source: str, target: str, channels: int) -> NodeProto:
    return helper.make_node(
        "ReorderOutput", [source], [target], name=f"{target}@in_order", domain=_NCHWC, channels=channels, channels_last=0
    )


def _rounds(makers: dict[str, NodeProto], name: str) -> bool:
    """Whether the value was made fp32 of fp16 of fp32."""
    wide = makers.get(name)
    narrow = makers.get(wide.input[0]) if wide is not None and _casts_to(wide, TensorProto.FLOAT) else None
    return narrow is not None and _casts_to(narrow, TensorProto.FLOAT16)


def _casts_to(node: NodeProto, dtype: int) -> bool:
    return node.op_type == "Cast" and any(each.name == "to" and each.i == dtype for each in node.attribute)


def _rewired(node: NodeProto, *names: str) -> NodeProto:
    """The node on other inputs and outputs, as many as it has."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:], copy.output[:] = names[: len(node.input)], names[len(node.input) :]
    return copy


def _reshape(graph: GraphProto, source: str, target: str, shape: tuple[int, ...]) -> NodeProto:
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"{target}@shape"))
    return helper.make_node("Reshape", [source, f"{target}@shape"], [target], name=f"{target}@reshape")


def _readers(graph: GraphProto) -> Counter[str]:
    """By name of a value, how many read it; who calls the model is one, too."""
    return Counter([*(name for node in graph.node for name in node.input), *(output.name for output in graph.output)])


def _shapes(graph: GraphProto) -> Shapes:
    """By name of a value, its shape; an open extent is 0."""
    declared = (*graph.input, *graph.value_info, *graph.output)
    return {each.name: tuple(axis.dim_value for axis in each.type.tensor_type.shape.dim) for each in declared}


def _replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    kept = [_rewired(node, *node.input, *node.output) for node in nodes]  # what is in the graph goes with the graph's list
    del graph.node[:]
    graph.node.extend(kept)
