"""Small whole numbers in fp16, where it holds them exactly."""

from functools import cache
from typing import Any

import numpy as np

from coreflow.export.engine.bounds.analysis import Bounds, bounds_of
from coreflow.export.engine.repair.facts import Facts
from coreflow.export.engine.repair.rewrite import Builder, Uses, rewrite
from coreflow.export.package.graph import Graph, Op, Value

_EXACT = 2048.0  # fp16 holds every whole number up to it
_COMPARISONS = ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
_ARITHMETIC = ("add", "sub", "mul", "maximum", "minimum", "select", "expand_dims", "squeeze", "reshape", "transpose")
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32")


def integers_as_fp16(graph: Graph, facts: Facts) -> Graph:
    """Arithmetic and comparisons of small whole numbers in fp16.

    Given::

        %kept = cast(x=not_equal(x=%ids + 1, y=1), dtype="fp16")          # ids of 0 to 999

    Result::

        %kept = cast(x=not_equal(x=cast(x=%ids, dtype="fp16") + 1, y=1), dtype="fp16")

    The engine takes no whole numbers; one cast stays on the CPU. It is done where proved bounds keep every operand and every result
    within 2048, up to which fp16 is exact, and where nothing needs them as whole numbers.
    """
    uses = Uses(graph)

    @cache
    def bounds() -> Bounds:
        return bounds_of(graph, facts.bounds)

    def is_small(value: Value) -> bool:
        bound = bounds().of(value)
        return bool(np.min(bound.low, initial=np.inf) >= -_EXACT and np.max(bound.high, initial=-np.inf) <= _EXACT)

    taken: set[int] = set()
    for op in reversed(graph.ops):
        if _has_integers(op) and _serves_floats(op, uses, taken) and all(is_small(value) for value in _integers_of(op)):
            taken.add(id(op))
    in_fp16: dict[int, Value] = {}  # by id of a value of whole numbers, what it is in fp16

    def as_fp16(value: Value, new: Builder) -> Value:
        if value.dtype not in _INTEGERS:
            return value
        if isinstance(value.data, np.ndarray):
            return new.constant("fp16", value.data.astype(np.float16), "float16")
        if id(value) not in in_fp16:
            in_fp16[id(value)] = new("cast", x=value, dtype="fp16", as_dtype="float16")
        return in_fp16[id(value)]

    def rule(op: Op, new: Builder) -> bool:
        if op.type == "cast" and id(op.argument("x")[0]) in in_fp16 and op.outputs[0].dtype == "float16":
            new("identity", x=in_fp16[id(op.argument("x")[0])], gives=op.outputs[0])
            return True
        if id(op) not in taken:
            return False
        names = [name for name in op.inputs if name in ("x", "y", "a", "b")]
        changes: dict[str, Any] = {name: as_fp16(op.argument(name)[0], new) for name in names}
        if op.type in _COMPARISONS:
            new.again(op, gives=op.outputs[0], **changes)
        else:
            in_fp16[id(op.outputs[0])] = new.again(op, as_dtype="float16", **changes)
        return True

    return rewrite(graph, rule) if taken else graph


def _integers_of(op: Op) -> list[Value]:
    values = [op.argument(name)[0] for name in op.inputs if name in ("x", "y", "a", "b")]
    return [value for value in (*values, *op.outputs) if value.dtype in _INTEGERS]


def _has_integers(op: Op) -> bool:
    """Whether ``op`` computes with whole numbers, and not with constants alone."""
    if op.type not in (*_COMPARISONS, *_ARITHMETIC) or op.blocks:
        return False
    return any(value.dtype in _INTEGERS and value.data is None for value in _integers_of(op))


def _serves_floats(op: Op, uses: Uses, taken: set[int]) -> bool:
    """Whether its result is read as fp16 alone: by ops that are taken, and casts."""
    if op.type in _COMPARISONS:
        return True
    (result,) = op.outputs
    readers = uses.readers(result)
    is_float = all(id(reader) in taken or (reader.type == "cast" and reader.outputs[0].dtype == "float16") for reader in readers)
    return bool(readers) and is_float and not uses.is_output(result)
