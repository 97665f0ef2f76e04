"""Faults that are put into saved packages, one each, with the ops that they belong to.

A fault changes the protobuf message of a copy of the package, or its weights. What belongs to it are the ops that read the constant,
attribute or input that was changed; where an op is taken out, those that read its result.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.mlpackage import read_message, read_program
from coreflow.models.arrays import Array


class EditablePackage:
    """The default function of a package, to be changed and saved.

    >>> package = EditablePackage(Path("encoder.mlpackage"))
    >>> package.set_argument(op, "mode", np.array("TANH_APPROXIMATION"))
    >>> package.save()
    """

    def __init__(self, path: Path) -> None:
        program = read_program(path)
        self.path = path
        self.graph: Graph = program.function()[0]
        self._message, self._file = read_message(path)
        function = self._message.mlProgram.functions[program.default_function]
        self._block = function.block_specializations[function.opset]
        self._makers = {output.name: operation for operation in self._block.operations for output in operation.outputs}

    def save(self) -> None:
        """Write the message, and read it back, where all of it is checked."""
        self._file.write_bytes(self._message.SerializeToString(deterministic=True))
        read_program(self.path)

    def set_constant(self, value: Value, array: Array) -> None:
        """Other numbers for a constant, for all that read it."""
        stored = self._makers[value.name].attributes["val"]
        if stored.WhichOneof("value") != "blobFileValue":
            _fill(stored, array)
            return
        weights = next(self.path.rglob("weight.bin"))
        content, old = bytearray(weights.read_bytes()), np.ascontiguousarray(value.data).tobytes()
        start = content.index(old, stored.blobFileValue.offset)
        content[start : start + len(old)] = np.ascontiguousarray(array).tobytes()
        weights.write_bytes(content)

    def set_argument(self, op: Op, argument: str, array: Array) -> None:
        """Another constant for one argument of one op; others that read the old one keep it."""
        operation = self._makers[op.outputs[0].name]
        binding = operation.inputs[argument].arguments[0]
        if binding.WhichOneof("binding") == "value":
            _fill(binding.value, array)
            return
        constant = type(operation)()
        constant.CopyFrom(self._makers[binding.name])
        name = f"{op.name}_{argument}_changed"
        constant.outputs[0].name = binding.name = name
        constant.attributes["name"].immediateValue.tensor.strings.values[:] = [name]
        _fill(constant.attributes["val"], array)
        operations = self._block.operations
        place = next(place for place, other in enumerate(operations) if other.outputs[0].name == op.outputs[0].name)
        operations.insert(place, constant)

    def swap(self, op: Op, first: str, second: str) -> None:
        """Exchange two arguments of an op, or the first two values of one."""
        operation = self._makers[op.outputs[0].name]
        one = operation.inputs[first].arguments[0]
        other = operation.inputs[second].arguments[first == second]
        kept = type(one)()
        kept.CopyFrom(one)
        one.CopyFrom(other)
        other.CopyFrom(kept)

    def replace_type(self, op: Op, kind: str) -> None:
        """Make another op of the same arguments of it."""
        self._makers[op.outputs[0].name].type = kind

    def bypass(self, op: Op, value: Value) -> None:
        """Take an op out; its readers read ``value`` instead."""
        (output,) = op.outputs
        for operation in self._block.operations:
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    if binding.WhichOneof("binding") == "name" and binding.name == output.name:
                        binding.name = value.name
        self._block.operations.remove(self._makers[output.name])


def _fill(stored: Any, array: Array) -> None:
    """Other elements for a constant that lies in the message."""
    tensor = stored.immediateValue.tensor
    form = tensor.WhichOneof("value")
    assert form is not None
    if form == "bytes":
        tensor.bytes.values = np.ascontiguousarray(array).tobytes()
    else:
        getattr(tensor, form).values[:] = array.reshape(-1).tolist()


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One fault and its ops.

    >>> mutation = next(mutations_of(package.graph, "attribute", random))
    >>> mutation.text, mutation.ops
    ('gelu_0: mode EXACT becomes TANH_APPROXIMATION', ('gelu_0',))
    """

    kind: str
    text: str
    ops: tuple[str, ...]
    apply: Callable[[EditablePackage], None]

    def put_into(self, package: Path, target: Path) -> Path:
        """A copy of ``package`` with the fault."""
        shutil.copytree(package, target)
        edited = EditablePackage(target)
        self.apply(edited)
        edited.save()
        return target


def mutations_of(graph: Graph, kind: str, random: np.random.Generator) -> tuple[Mutation, ...]:
    """All mutations of one kind that the program has room for; where elements are to be chosen, ``random`` chooses."""
    return tuple(KINDS[kind](graph, random))


def readers(graph: Graph, value: Value) -> tuple[str, ...]:
    """Names of the ops that read a value."""
    return tuple(op.name for op in graph.ops if any(other.name == value.name for other in op.input_values()))


_PRODUCTS = ("conv", "conv_transpose", "linear", "lstm", "matmul")


def _constants(graph: Graph, accepts: Callable[[Op, str, Array], bool]) -> Iterator[tuple[Value, Array]]:
    """Named floating constants that some op reads as ``accepts`` says, with their numbers; each once."""
    read = ((op, argument, value) for op in graph.ops for argument, value in op.inputs.items() if isinstance(value, Value) and value.name)
    seen = set()
    for op, argument, value in read:
        data = value.data
        if value.name not in seen and isinstance(data, np.ndarray) and data.dtype.kind in "fb" and accepts(op, argument, data):
            seen.add(value.name)
            yield value, data


def _changed(kind: str, graph: Graph, value: Value, array: Array, text: str) -> Mutation:
    return Mutation(
        kind=kind, text=f"{value.name}: {text}", ops=readers(graph, value), apply=lambda package: package.set_constant(value, array)
    )


def _is_weight(op: Op, argument: str, array: Array) -> bool:
    return op.type in _PRODUCTS and array.ndim > 1 and array.size >= 64


def _zeroed_64ths(graph: Graph, random: np.random.Generator) -> Iterator[Mutation]:
    for value, weight in _constants(graph, _is_weight):
        changed = weight.copy()
        count = weight.size // 64
        start = int(random.integers(0, weight.size - count + 1))
        changed.reshape(-1)[start : start + count] = 0
        yield _changed("zeroed 64th", graph, value, changed, f"elements {start} to {start + count - 1} are 0")


def _zeroed_rows(graph: Graph, random: np.random.Generator) -> Iterator[Mutation]:
    for value, weight in _constants(graph, _is_weight):
        row = int(random.integers(0, len(weight)))
        changed = weight.copy()
        changed[row] = 0
        yield _changed("zeroed row", graph, value, changed, f"row {row} is 0")


def _wrong_biases(graph: Graph, random: np.random.Generator) -> Iterator[Mutation]:
    for value, bias in _constants(
        graph, lambda op, argument, array: argument in ("bias", "beta") and array.ndim == 1 and bool(array.any())
    ):
        element = int(random.integers(0, len(bias)))
        changed = bias.copy()
        changed[element] += np.float16(0.05)
        yield _changed("bias", graph, value, changed, f"element {element} is 0.05 more")
        yield _changed("bias", graph, value, np.zeros_like(bias), "all of it is 0")


def _wrong_masks(graph: Graph, random: np.random.Generator) -> Iterator[Mutation]:
    """Constants of two values: each becomes the other, all become the first one, or the last axis is shifted."""
    for value, mask in _constants(graph, lambda op, argument, array: array.ndim > 1 and len(np.unique(array)) == 2):
        low, high = np.unique(mask)
        yield _changed("mask", graph, value, np.where(mask == low, high, low).astype(mask.dtype), f"{low} and {high} are exchanged")
        yield _changed("mask", graph, value, np.full_like(mask, mask.flat[0]), f"all are {mask.flat[0]}")
        yield _changed("mask", graph, value, np.roll(mask, 1, -1), "shifted by 1")


def _shifted_tables(graph: Graph, random: np.random.Generator) -> Iterator[Mutation]:
    """Tables of embeddings and positions, one row further; what is looked up, or added or multiplied elementwise."""

    def is_table(op: Op, argument: str, array: Array) -> bool:
        rows = [extent for extent in array.shape if extent > 1]
        is_looked_up = op.type.startswith("gather") and argument == "x"
        return array.dtype.kind == "f" and len(rows) == 2 and len(np.unique(array)) > 2 and (is_looked_up or op.type in ("add", "mul"))

    for value, table in _constants(graph, is_table):
        axis = next(axis for axis, extent in enumerate(table.shape) if extent > 1)
        shift = int(random.choice([-1, 1]))
        yield _changed("table", graph, value, np.roll(table, shift, axis), f"rows are shifted by {shift}")


def _attributes(graph: Graph, random: np.random.Generator) -> Iterator[Mutation]:
    for op in graph.ops:
        for argument, array in _other_arguments(op):
            before = op.inputs[argument]
            assert isinstance(before, Value)
            text = f"{op.name}: {argument} {_short(before.data)} becomes {_short(array)}"

            def apply(package: EditablePackage, op: Op = op, argument: str = argument, array: Array = array) -> None:
                package.set_argument(op, argument, array)

            yield Mutation(kind="attribute", text=text, ops=(op.name,), apply=apply)
        if op.type in _OTHER_TYPES:
            other = _OTHER_TYPES[op.type]

            def replace(package: EditablePackage, op: Op = op, other: str = other) -> None:
                package.replace_type(op, other)

            yield Mutation(kind="attribute", text=f"{op.name}: {op.type} becomes {other}", ops=(op.name,), apply=replace)


_OTHER_TYPES = {
    "tanh": "softsign",
    "reduce_mean": "reduce_max",
    "relu": "softplus",
    "silu": "tanh",
}


def _short(data: object) -> str:
    return str(np.asarray(data).tolist())


def _other_arguments(op: Op) -> Iterator[tuple[str, Array]]:
    """Arguments and other values for them that leave all shapes as they are."""
    data = {name: value.data for name, value in op.inputs.items() if isinstance(value, Value) and value.data is not None}
    x = op.inputs.get("x")
    shape = x.shape if isinstance(x, Value) else None
    if "epsilon" in data:
        yield "epsilon", np.asarray(data["epsilon"]) * np.float16(100)
    if op.type == "gelu":
        yield "mode", np.array("TANH_APPROXIMATION")
    if op.type in ("leaky_relu", "elu"):
        yield "alpha", np.asarray(data["alpha"]) * np.float16(1.5)
    if op.type == "softmax" and shape is not None:
        axis = int(np.asarray(data["axis"])) % len(shape)
        yield from (("axis", np.array(other, np.int32)) for other, extent in enumerate(shape) if other != axis and (extent or 0) > 1)
    if op.type == "transpose" and shape is not None:
        yield from _other_orders(np.asarray(data["perm"]), op.outputs[0].shape or ())
    if op.type == "pad" and np.asarray(data["pad"]).any():
        yield "pad", _mirrored(np.asarray(data["pad"]))
        if "constant_val" in data:
            yield "constant_val", np.asarray(data["constant_val"]) + np.float16(0.5)
    if op.type in ("conv", "max_pool", "avg_pool") and "pad" in data and np.asarray(data["pad"]).all():
        pad = np.asarray(data["pad"]).copy()
        pad[-2:] += np.array([1, -1], pad.dtype)
        if data.get("pad_type") == "custom":
            yield "pad", pad
    if op.type == "avg_pool":
        yield "exclude_padding_from_average", ~np.asarray(data["exclude_padding_from_average"])


def _other_orders(order: Array, result: Sequence[int | None]) -> Iterator[tuple[str, Array]]:
    """Orders with two axes exchanged that are of the same extent."""
    for first in range(len(order)):
        for second in range(first + 1, len(order)):
            if result[first] == result[second] and result[first] != 1:
                changed = order.copy()
                changed[[first, second]] = changed[[second, first]]
                yield "perm", changed


def _mirrored(pad: Array) -> Array:
    """Before becomes after, and after before."""
    return np.ascontiguousarray(pad.reshape(-1, 2)[:, ::-1]).reshape(-1)


def _swapped_inputs(graph: Graph, random: np.random.Generator) -> Iterator[Mutation]:
    for op in graph.ops:
        pair = _ordered_inputs(op)
        if pair is not None:
            first, second = pair

            def apply(package: EditablePackage, op: Op = op, first: str = first, second: str = second) -> None:
                package.swap(op, first, second)

            yield Mutation(kind="swapped inputs", text=f"{op.name}: {first} and {second} of {op.type}", ops=(op.name,), apply=apply)


def _ordered_inputs(op: Op) -> tuple[str, str] | None:
    """Two arguments whose order counts, and whose exchange leaves the result's shape."""
    if op.type in ("sub", "real_div", "pow", "greater", "less"):
        return "x", "y"
    if op.type == "select":
        return "a", "b"
    if op.type == "concat":
        values = op.argument("values")
        return ("values", "values") if len(values) > 1 and values[0].shape == values[1].shape else None
    if op.type == "matmul":
        x, y = op.argument("x")[0], op.argument("y")[0]
        is_square = x.shape is not None and x.shape == y.shape and x.shape[-1] == x.shape[-2]
        return ("x", "y") if is_square else None
    return None


def _dropped_residuals(graph: Graph, random: np.random.Generator) -> Iterator[Mutation]:
    returned = {value.name for value in graph.outputs}
    for op in graph.ops:
        if op.type != "add" or op.outputs[0].name in returned:
            continue
        values = op.argument("x")[0], op.argument("y")[0]
        if any(value.data is not None or value.shape != op.outputs[0].shape for value in values):
            continue
        for argument, value in zip("xy", values, strict=True):

            def apply(package: EditablePackage, op: Op = op, value: Value = value) -> None:
                package.bypass(op, value)

            text = f"{op.name}: its {argument} ({value.name}) instead of the sum"
            yield Mutation(kind="dropped residual", text=text, ops=readers(graph, op.outputs[0]), apply=apply)


KINDS: Mapping[str, Callable[[Graph, np.random.Generator], Iterator[Mutation]]] = {
    "zeroed 64th": _zeroed_64ths,
    "zeroed row": _zeroed_rows,
    "bias": _wrong_biases,
    "attribute": _attributes,
    "swapped inputs": _swapped_inputs,
    "dropped residual": _dropped_residuals,
    "mask": _wrong_masks,
    "table": _shifted_tables,
}
