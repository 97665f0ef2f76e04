"""Replaces ops of a graph by others; the last of them gives the very value that the old one gave, so that no reader changes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from coreflow.export.package.cut_plan import free_name
from coreflow.export.package.graph import Graph, Op, Shape, Value
from coreflow.models.arrays import Array

_SIDE_EFFECTS = ("write_state", "coreml_update_state")
Argument = Value | float | bool | str | Sequence[int] | Sequence[Value] | Array
Rule = Callable[[Op, "Builder"], bool]


class Uses:
    """Which op gives a value, and which read it, within one function.

    >>> uses = Uses(graph)
    >>> [op.type for op in uses.readers(graph.inputs[0])]
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def maker(self, value: Value) -> Op | None:
        """The op that gives ``value``; None for inputs and constants."""
        return self._makers.get(id(value))

    def made_by(self, value: Value | tuple[Value, ...] | None, *op_types: str) -> Op | None:
        """The op that gives ``value`` if it is of one of these types."""
        op = self.maker(value) if isinstance(value, Value) else None
        return op if op is not None and op.type in op_types else None

    def readers(self, value: Value) -> tuple[Op, ...]:
        """The ops that read ``value``, once for every time they do; ops with blocks read what their blocks read."""
        return tuple(self._readers.get(id(value), ()))

    def is_output(self, value: Value) -> bool:
        """Whether the function, or one of its blocks, gives ``value``."""
        return id(value) in self._outputs

    def only_reader(self, value: Value) -> Op | None:
        """The op that alone reads ``value``, once; None where there are others, or where it is an output."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and not self.is_output(value) else None

    @cached_property
    def _makers(self) -> dict[int, Op]:
        return {id(value): op for op in self._graph.walk() for value in op.outputs}

    @cached_property
    def _readers(self) -> dict[int, list[Op]]:
        readers: dict[int, list[Op]] = {}
        for op in self._graph.walk():
            for value in op.reads():
                readers.setdefault(id(value), []).append(op)
        return readers

    @cached_property
    def _outputs(self) -> set[int]:
        blocks = (block for op in self._graph.walk() for block in op.blocks)
        return {id(value) for graph in (self._graph, *blocks) for value in graph.outputs}


class Builder:
    """Makes the ops that take the place of one op.

    >>> size = new("abs", x=x)
    >>> new("add", x=size, y=1.0, gives=op.outputs[0])

    Numbers become constants: whole ones int32, floats of the type of the first value among the arguments, which is the result's, too,
    unless ``as_dtype`` says another. The shape is that to which the arguments ``x`` and ``y`` broadcast, unless told otherwise.
    """

    def __init__(self, name: str, names: set[str]) -> None:
        self._name = name
        self._names = names
        self.ops: list[Op] = []
        self.constants: list[Value] = []

    def __call__(
        self, op_type: str, *, gives: Value | None = None, shape: Shape | None = None, as_dtype: str | None = None, **arguments: Argument
    ) -> Value:
        """Append an op and return its result, which is ``gives`` where that is said."""
        first = next(value for value in arguments.values() for value in _values(value))
        inputs = {name: self._input(f"{op_type}_{name}", value, as_dtype or first.dtype) for name, value in arguments.items()}
        name = self._name if gives is not None else free_name(f"{self._name}_{op_type}", self._names)
        if gives is None:
            extents = shape if shape is not None else _broadcast(inputs.get("x", first), inputs.get("y"))
            gives = Value(name, as_dtype or first.dtype, extents)
        self.ops.append(Op(op_type, name, inputs, (gives,)))
        return gives

    def again(
        self, op: Op, *, gives: Value | None = None, shape: Shape | None = None, as_dtype: str | None = None, **changes: Argument
    ) -> Value:
        """Append ``op`` once more with some other arguments; the result is of the same type, unless told otherwise, or ``gives``."""
        first = next(value for value in changes.values() for value in _values(value))
        changed = {name: self._input(f"{op.type}_{name}", value, first.dtype) for name, value in changes.items()}
        name = self._name if gives is not None else free_name(f"{self._name}_{op.type}", self._names)
        same = op.outputs[0]
        result = gives or replace(same, name=name, dtype=as_dtype or same.dtype, shape=same.shape if shape is None else shape)
        self.ops.append(replace(op, name=name, inputs={**op.inputs, **changed}, outputs=(result,)))
        return result

    def free(self, name: str) -> str:
        """A name like this one that nothing has, which is then taken."""
        return free_name(name, self._names)

    def constant(self, name: str, data: Array, dtype: str) -> Value:
        """A constant of the program."""
        value = Value(free_name(f"{self._name}_{name}", self._names), dtype, data.shape, data=data)
        self.constants.append(value)
        return value

    def _input(self, name: str, argument: Argument, dtype: str) -> Value | tuple[Value, ...]:
        if isinstance(argument, Value):
            return argument
        if isinstance(argument, str):
            value = Value(free_name(f"{self._name}_{name}", self._names), "string", (), data=argument)
            self.constants.append(value)
            return value
        if isinstance(argument, np.ndarray):
            return self.constant(name, argument, argument.dtype.name)
        if isinstance(argument, Sequence):
            if values := tuple(_values(argument)):
                return values
            return self.constant(name, np.array(argument, np.int32), "int32")
        kind = "bool" if isinstance(argument, bool) else "int32" if isinstance(argument, int) else dtype
        return self.constant(name, np.array(argument, kind), kind)


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """``graph`` with the ops for which ``rule`` is true replaced by those that it made; itself where there is none.

    A rule makes ops of values that are there before the op. What nothing reads any longer is left out.
    """
    names = names_of(graph)
    builders: dict[int, Builder] = {}
    for op in graph.walk():
        builder = Builder(op.name, names)
        if rule(op, builder):
            builders[id(op)] = builder
    constants = [value for builder in builders.values() for value in builder.constants]
    return replace_ops(graph, {key: builder.ops for key, builder in builders.items()}, constants)


def replace_ops(graph: Graph, others: Mapping[int, Sequence[Op]], constants: Iterable[Value] = ()) -> Graph:
    """``graph`` with other ops in the place of those whose ids are keys, and with new ``constants``; itself where there are no others."""
    if not others:
        return graph
    changed = without_unread(_replaced(graph, others))
    read = {id(value) for op in changed.ops for value in op.reads()} | {id(value) for value in changed.outputs}
    return replace(changed, constants=tuple(value for value in (*graph.constants, *constants) if id(value) in read))


def without_unread(graph: Graph) -> Graph:
    """``graph`` without ops that nothing depends on."""
    read = {id(value) for value in graph.outputs}
    kept = []
    for op in reversed(graph.ops):
        if not op.outputs or op.type in _SIDE_EFFECTS or op.blocks or any(id(value) in read for value in op.outputs):
            kept.append(op)
            read |= {id(value) for value in op.reads()}
    return replace(graph, ops=tuple(reversed(kept)))


def _replaced(graph: Graph, others: Mapping[int, Sequence[Op]]) -> Graph:
    ops: list[Op] = []
    for op in graph.ops:
        if id(op) in others:
            ops.extend(others[id(op)])
        elif op.blocks:
            blocks = tuple(_replaced(block, others) for block in op.blocks)
            ops.append(op if all(one is other for one, other in zip(blocks, op.blocks, strict=True)) else replace(op, blocks=blocks))
        else:
            ops.append(op)
    same = len(ops) == len(graph.ops) and all(one is other for one, other in zip(ops, graph.ops, strict=True))
    return graph if same else replace(graph, ops=tuple(ops))


def number(value: object) -> float | None:
    """The one number that a constant holds; None for anything else."""
    data = value.data if isinstance(value, Value) else None
    return float(data.reshape(-1)[0]) if isinstance(data, np.ndarray) and data.size == 1 and data.dtype.kind in "fiub" else None


def integers(value: object) -> tuple[int, ...] | None:
    """The whole numbers that a constant holds; None for anything else."""
    data = value.data if isinstance(value, Value) else None
    return tuple(int(item) for item in data.reshape(-1)) if isinstance(data, np.ndarray) and data.dtype.kind in "iub" else None


def argument(op: Op, name: str) -> Value | None:
    """The one value of an argument; None where it is missing or a tuple."""
    value = op.inputs.get(name)
    return value if isinstance(value, Value) else None


def known_shape(value: Value | None) -> tuple[int, ...] | None:
    """The shape of a value if all of it is known."""
    shape = value.shape if value is not None else None
    return None if shape is None or None in shape else tuple(extent for extent in shape if extent is not None)


def names_of(graph: Graph) -> set[str]:
    """Every name that is taken, of values and of ops."""
    values = (value for op in graph.walk() for value in (*op.reads(), *op.outputs))
    return {value.name for value in (*values, *graph.inputs, *graph.constants)} | {op.name for op in graph.walk()}


def _values(argument: object) -> Iterable[Value]:
    if isinstance(argument, Value):
        return (argument,)
    return [item for item in argument if isinstance(item, Value)] if isinstance(argument, tuple | list) else ()


def _broadcast(x: Value | tuple[Value, ...], y: Value | tuple[Value, ...] | None) -> Shape | None:
    shapes = [value.shape for value in (x, y) if isinstance(value, Value)]
    if any(shape is None for shape in shapes):
        return None
    rank = max(len(shape or ()) for shape in shapes)
    filled = [(1,) * (rank - len(shape or ())) + (shape or ()) for shape in shapes]
    return tuple(_extent(extents) for extents in zip(*filled, strict=True))


def _extent(extents: Sequence[int | None]) -> int | None:
    known = [extent for extent in extents if extent not in (None, 1)]
    return known[0] if known else None if None in extents else 1
