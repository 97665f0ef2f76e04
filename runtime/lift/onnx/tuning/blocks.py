"""Values that stay in blocks of channels.

onnxruntime's convolutions take and leave (N, C, H, W) as N, C / b, H, W, b in memory (NCHWc): b channels side by side, as many as a vector
register holds. It puts every value in order again for any op that is not one of its own on blocks. For an op that takes every element by
itself the order does not matter, so such a value stays in blocks.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, load, numpy_helper, save

from coreflow.runtime.lift.onnx.tuning.graph import Shapes, attribute, casts_to, constants_of, replace_nodes, rewired

NCHWC = "com.microsoft.nchwc"  # the domain of onnxruntime's ops on blocks
_ELEMENTWISE = frozenset({"Add", "Cast", "Gelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"})  # of every element by itself


def channels_in_a_block(optimise: Callable[[Path, Path], object], folder: Path) -> int | None:
    """How many channels onnxruntime puts side by side on this processor; None where it has no such convolutions.

    It is seen in how it lays out weights: w[o, i] of (O, I, 1, 1) is at O / b, I / b, i, o.
    """
    weights = np.arange(32.0, dtype=np.float32)[:, None, None, None] * np.ones((1, 32, 1, 1), np.float32)
    places = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 32, 4, 4)) for name in "xy"]
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[1, 1])
    graph = helper.make_graph([node], "probe", places[:1], places[1:], [numpy_helper.from_array(weights, "w")])
    with TemporaryDirectory(dir=folder) as inside:
        probe, optimised = Path(inside) / "probe.onnx", Path(inside) / "optimised.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), probe)
        optimise(probe, optimised)
        graph = load(optimised).graph
    conv = next((node for node in graph.node if node.domain == NCHWC and node.op_type == "Conv"), None)
    if conv is None:
        return None
    laid_out = numpy_helper.to_array(constants_of(graph)[conv.input[1]]).ravel()
    return int(np.argmax(laid_out[1:] != laid_out[:-1] + 1)) + 1


def stay_in_blocks(graph: GraphProto, shapes: Shapes, block: int) -> Set[str]:
    """Computes element by element on blocks of ``block`` channels, and puts in order only values that something else reads.

    Given: x in blocks -> ReorderOutput -> an op on every element by itself -> ReorderInput -> y in blocks.
    Result: x in blocks -> the same op -> y in blocks.

    Returns the names of the values that are computed so; ``shapes`` learns theirs.
    """
    nodes: list[NodeProto] = []
    only_cast = set(_only_cast_to_fp32(graph))
    blocks: dict[str, str] = {}  # name of a value -> name of the same value in blocks
    computed: set[str] = set()
    ordering: set[str] = set()  # values that are there in blocks alone, as long as nothing reads them in order
    same: dict[str, str] = {}  # name of blocks that are no longer made -> name of those that are the same

    def put_in_order(name: str) -> None:
        if name in ordering:
            ordering.remove(name)
            channels = shapes[name][1]
            nodes.append(
                helper.make_node("ReorderOutput", [blocks[name]], [name], name=f"{name}@in_order", domain=NCHWC, channels=channels)
            )

    for node in graph.node:
        reads = [same.get(name, name) for name in node.input]
        source, target = (reads or [""])[0], node.output[0]
        if _puts_in_order(node) and _fills_blocks(shapes.get(target, ()), block):
            blocks[target] = source
            ordering.add(target)
        elif _puts_in_blocks(node) and source in blocks:
            same[target] = blocks[source]
        elif _is_elementwise(node, only_cast) and all(name in blocks for name in reads) and len({shapes[name] for name in reads}) == 1:
            blocks[target] = f"{target}@in_blocks"
            ordering.add(target)
            computed.add(blocks[target])
            shapes[target] = shapes[blocks[target]] = shapes[source]
            nodes.append(rewired(node, *(blocks[name] for name in reads), blocks[target]))
        else:
            for name in reads:
                put_in_order(name)
            nodes.append(rewired(node, *reads, *node.output))
    for output in graph.output:
        put_in_order(output.name)
    replace_nodes(graph, nodes)
    return computed


def _is_elementwise(node: NodeProto, only_cast: set[str]) -> bool:
    """Whether the node takes every element by itself, and its result can be put in order again, which only fp32 can, or need not be."""
    return node.op_type in _ELEMENTWISE and (node.op_type != "Cast" or casts_to(node, TensorProto.FLOAT) or node.output[0] in only_cast)


def _fills_blocks(shape: Sequence[int], block: int) -> bool:
    """Whether blocks of a value of that shape hold nothing else."""
    return len(shape) == 4 and all(shape) and shape[1] % block == 0


def _puts_in_order(node: NodeProto) -> bool:
    return node.op_type == "ReorderOutput" and not attribute(node, "channels_last", 0)  # as (B, H, W, C) its axes are not those of blocks


def _puts_in_blocks(node: NodeProto) -> bool:
    return node.op_type == "ReorderInput" and not attribute(node, "channels_last", 0)


def _only_cast_to_fp32(graph: GraphProto) -> Iterator[str]:
    """The values that nothing reads but casts to fp32."""
    others = {name for node in graph.node if not casts_to(node, TensorProto.FLOAT) for name in node.input}
    others.update(output.name for output in graph.output)
    yield from (name for node in graph.node for name in node.output if name not in others)
