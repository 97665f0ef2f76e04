"""Samples whose values a package does not take: outside the bounds of an input, or past the end of a table that it is an index into."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coreflow.export.package.graph import Graph, Op, Value
from coreflow.runtime.interface import first_of, wrong_value
from coreflow.validate.inputs.samples import Sample, Specs

# Ops whose results are the values that they read.
_MOVING = frozenset({"cast", "expand_dims", "identity", "reshape", "squeeze", "transpose"})


@dataclass(frozen=True, slots=True)
class Table:
    """The values from which a gather picks by an input.

    >>> index_tables(graph)["ids"]
    Table(name='embedding_weight', rows=30522)
    """

    name: str
    rows: int


def index_tables(graph: Graph) -> dict[str, Table]:
    """For every input of whole numbers that are, as they come, indices into tables: the shortest of those."""
    inputs = {id(value): value.name for value in graph.inputs if value.dtype.startswith("int")}
    from_end: dict[int, str] = {}  # by id of a value: the input to which the length of a table was added
    tables: dict[str, Table] = {}
    for op in graph.ops:
        name = inputs.get(_read(op, "x"))
        if op.type in _MOVING and name is not None:
            inputs[id(op.outputs[0])] = name
        elif op.type == "add" and name is not None:
            from_end[id(op.outputs[0])] = name
        elif op.type == "select" and (guarded := inputs.get(_read(op, "a"))) is not None and from_end.get(_read(op, "b")) == guarded:
            inputs[id(op.outputs[0])] = guarded  # the converter's guard of a gather: negative indices count from the end
        elif op.type == "gather" and (picking := inputs.get(_read(op, "indices"))) is not None and (rows := _rows(op)):
            table = Table(op.argument("x")[0].name, rows)
            tables[picking] = min(tables.get(picking, table), table, key=lambda table: table.rows)
    return tables


def find_misfit(sample: Sample, specs: Specs, tables: Mapping[str, Table]) -> str:
    """The first value of ``sample`` that the package does not take, in words; empty where there is none."""
    for name, spec in specs.items():
        array = np.asarray(sample.inputs.get(name, ()))
        if array.dtype.kind not in "fiub":
            continue
        if problem := wrong_value(name, array, spec):
            return f"{sample.label}: {problem}"
        table = tables.get(name)
        if table is not None and (is_outside := (array >= table.rows) | (array < -table.rows)).any():
            right = f"the table {table.name!r} has {table.rows} rows, 0 to {table.rows - 1} is right"
            return f"{sample.label}: input {name!r} holds {first_of(array, is_outside)}; {right}"
    return ""


def _read(op: Op, argument: str) -> int:
    """The id of the value that ``op`` reads as ``argument``; 0 where it reads none."""
    value = op.inputs.get(argument)
    return id(value) if isinstance(value, Value) else 0


def _rows(op: Op) -> int:
    """The extent of the axis along which a gather picks; 0 where it is open."""
    x, axis = op.inputs["x"], op.inputs.get("axis")
    if not isinstance(x, Value) or not x.shape:
        return 0
    place = int(np.asarray(axis.data).item()) if isinstance(axis, Value) and axis.data is not None else 0
    return x.shape[place] or 0
