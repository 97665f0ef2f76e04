"""Whether two programs are the same function: the same operations on the same constants, under whatever names and in whatever order."""

from collections.abc import Hashable

import numpy as np

from coreflow.export.package.graph import Constant, Graph, Op, Value
from coreflow.models.arrays import Array

_FLOATS = frozenset({"fp16", "fp32", "fp64"})  # as MIL spells them; float64 arithmetic makes no difference between them
_PROBES = 64  # elements by which constants are told apart before all are compared


def is_same_function(one: Graph, other: Graph) -> bool:
    """Whether the outputs of both are the same numbers in float64 arithmetic, on the same inputs, because the same ops make them.

    Values are numbered by what they are: an op of one type with arguments of the same numbers has the same number, wherever it stands and
    whatever it is called. Casts from float to float are none there. Of programs with control flow, lists or states nothing is known: False.

    >>> is_same_function(pairing.graph, fresh.function()[0])
    True
    """
    if one.opset != other.opset or not (_is_plain(one) and _is_plain(other)):
        return False
    numbers = _Numbers()
    return numbers.of_outputs(one) == numbers.of_outputs(other)


class _Numbers:
    """A number for every value, the same one for the same value of another graph."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}
        self._constants: dict[Hashable, list[tuple[Array, int]]] = {}  # those that look alike

    def of_outputs(self, graph: Graph) -> list[int]:
        """The numbers of the outputs of ``graph``."""
        numbers = {id(value): self._new("input", place) for place, value in enumerate(graph.inputs)}
        for op in graph.ops:
            if _is_float_cast(op):
                (source,) = op.argument("x")
                numbers[id(op.outputs[0])] = self._of(source, numbers)
                continue
            arguments = tuple(sorted((name, tuple(self._of(value, numbers) for value in op.argument(name))) for name in op.inputs))
            numbers.update((id(value), self._new(op.type, arguments, place)) for place, value in enumerate(op.outputs))
        return [self._of(value, numbers) for value in graph.outputs]

    def _new(self, *key: Hashable) -> int:
        return self._known.setdefault(key, len(self._known))

    def _of(self, value: Value, numbers: dict[int, int]) -> int:
        return numbers[id(value)] if value.data is None else self._of_constant(value.data)

    def _of_constant(self, data: Constant) -> int:
        if not isinstance(data, np.ndarray):
            return self._new("constant", "float" if data in _FLOATS else repr(data))
        kind = "float" if data.dtype.kind == "f" else data.dtype.name
        flat = data.reshape(-1)
        probes = flat[np.linspace(0, data.size - 1, min(data.size, _PROBES)).astype(np.intp)]
        key = kind, data.shape, (probes.astype(np.float64) if kind == "float" else probes).tobytes()
        alike = self._constants.setdefault(key, [])
        for other, number in alike:
            if np.array_equal(data, other):
                return number
        alike.append((data, self._new("constant", *key, len(alike))))
        return alike[-1][1]


def _is_float_cast(op: Op) -> bool:
    """Whether ``op`` turns floats into floats."""
    return op.type == "cast" and all("float" in value.dtype for value in (*op.argument("x"), *op.outputs))


def _is_plain(graph: Graph) -> bool:
    """Whether every value is a tensor that an op computes of its arguments alone."""
    values = (*graph.inputs, *(value for op in graph.ops for value in op.outputs))
    return all(value.kind == "tensor" for value in values) and not any(op.blocks or op.attributes for op in graph.ops)
